"""The record of a folder: what may be added to it, what may not, and old records."""

import json

import numpy as np
import pytest
import torch

import flowmatch as fm
from flowmatch.dealing import Dealt
from flowmatch.generation import generate
from flowmatch.guidance import Guidance


def edit(folder, **changes):
    path = folder / "sampling.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_record_says_all(pull, job, one):
    made = job(seeds=[5, 7, 8, 9], classes=(0, 3, 7), guidance=Guidance(scale=2, method="apg"))
    record = generate(pull, made, one)
    assert record == json.loads((made.save_dir / "sampling.json").read_text())
    assert (record["seeds"], record["count"], record["dealt"]) == ("5,7-9", 4, [0, 3, 7])
    assert (record["classes"], record["label"], record["nfe"]) == (None, None, 4)
    assert record["guidance"]["method"] == "apg"
    assert generate(pull, job("b", classes=(4,)), one)["label"] == 4
    record = generate(pull, job("c", classes=tuple(range(10))), one)
    assert (record["classes"], record["dealt"]) == (10, None)


def test_classes_follow_from_the_seed(pull, job, one):
    made = job(seeds=[5, 7, 8, 9], classes=(0, 3, 7), format="npz")
    generate(pull, made, one)
    with np.load(made.save_dir / "samples.npz") as archive:
        assert archive["seeds"].tolist() == [5, 7, 8, 9]
        assert archive["labels"].tolist() == [7, 3, 7, 0]
        x0 = fm.noise([5, 7, 8, 9], (3, 8, 8), stream=8888)
        x1 = fm.sample(pull, x0, made.solver, torch.tensor([7, 3, 7, 0]))
        expected = fm.tensors.to_uint8(x1).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(archive["samples"], expected)


def test_the_guidance_of_old_records_was_a_number(pull, job, one):
    made = job(guidance=Guidance(scale=2.0))
    generate(pull, made, one)
    edit(made.save_dir, guidance=2.0)
    assert generate(pull, made, one)["guidance"]["scale"] == 2.0
    edit(made.save_dir, guidance=3.0)
    with pytest.raises(ValueError, match=r"guidance was .*3\.0.* is .*2\.0"):
        generate(pull, made, one)


@pytest.mark.parametrize(
    "other",
    [
        {"classes": (1, 2)},
        {"classes": (1,)},
        {"guidance": Guidance(scale=2.0, interval=(0.2, 0.8))},
        {"weak_hash": "0123456789ab"},
        {"weights_hash": "other"},
        {"field_hash": "other"},
        {"conditions": Dealt({}, facts={"caption": {"texts": ["a dog"]}})},
        {"stream": 1},
        {"format": "npz"},
        {"solver": fm.solvers.Euler(steps=3)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_settings_do_not_mix(pull, job, one, other):
    generate(pull, job(), one)
    with pytest.raises(ValueError, match="samples of another setting"):
        generate(pull, job(**other), one)


def dog(key="k", **facts):
    return Dealt({}, facts={"caption": {"texts": ["a dog"], "encoder": "e", "key": key} | facts})


def of_data(stamp):
    return Dealt({}, facts={"hub train": {"names": ["age"], "stamps": {"age": stamp}}})


@pytest.mark.parametrize(
    ("one_deals", "other_deals"),
    [
        ({"conditions": dog()}, {"conditions": dog(), "classes": tuple(range(10))}),
        ({"conditions": dog()}, {"conditions": dog(key="of fewer tokens")}),
        ({"conditions": of_data("a")}, {"conditions": of_data("b")}),
    ],
    ids=["no class", "max_tokens", "data"],
)
def test_other_conditions_do_not_mix(pull, job, one, one_deals, other_deals):
    for first, second in ((one_deals, other_deals), (other_deals, one_deals)):
        made = job("a" if first is one_deals else "b", 2, format="npz", **first)
        generate(pull, made, one)
        assert generate(pull, job(made.save_dir.name, 3, format="npz", **first), one)["count"] == 3
        with pytest.raises(ValueError, match="samples of another setting"):
            generate(pull, job(made.save_dir.name, 4, format="npz", **second), one)


def test_records_that_do_not_name_the_field_mean_the_own_one_of_the_run(pull, job, one):
    path = job().save_dir / "sampling.json"
    generate(pull, job(field_hash="own", own_field_hash="own"), one)
    old = json.loads(path.read_text())
    del old["field"]
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="field was own, is other"):
        generate(pull, job(field_hash="other", own_field_hash="own"), one)
    assert generate(pull, job(field_hash="own", own_field_hash="own"), one)["field"] == "own"


def test_records_that_say_less_of_conditions_are_continued(pull, job, one):
    told = {"texts": ["a dog"], "encoder": "e"}
    generate(pull, job("a", 2, conditions=dog()), one)
    edit(job("a").save_dir, conditions={"caption": told})
    with pytest.raises(ValueError, match="samples of another setting"):
        generate(pull, job("a", 3, conditions=dog(texts=["a bird"])), one)
    record = generate(pull, job("a", 3, conditions=dog()), one)
    assert record["conditions"]["caption"] == {**told, "key": "k"}
    generate(pull, job("b", 2, conditions=of_data("a")), one)
    edit(job("b").save_dir, conditions={"hub train": {"names": ["age"], "hash": "of the config"}})
    assert generate(pull, job("b", 3, conditions=of_data("a")), one)["count"] == 3
    edit(job("b").save_dir, conditions={"hub train": {"names": ["year"], "hash": "of the config"}})
    with pytest.raises(ValueError, match="samples of another setting"):
        generate(pull, job("b", 3, conditions=of_data("a")), one)


def test_an_old_npz_without_seeds_is_kept(pull, job, one):
    generate(pull, job("a", format="npz"), one)
    path = job("a").save_dir / "samples.npz"
    with np.load(path) as archive:
        whole = {k: archive[k] for k in archive.files}
    np.savez(path, samples=whole["samples"][:10], labels=whole["labels"][:10])
    record = generate(pull, job("a", format="npz"), one)
    assert record["count"] == 25
    with np.load(path) as archive:
        assert all(np.array_equal(archive[k], whole[k]) for k in whole)


@pytest.mark.parametrize("format", ["png", "npz"])
def test_processes_share_the_work(pull, job, one, in_processes, contents, format):
    generate(pull, job("a", format=format), one)
    made = job("b", format=format, batch=4)
    in_processes(lambda p: generate(pull, made, p), 3)
    pattern = "[0-9]*.png" if format == "png" else "*.npz"
    if format == "png":
        assert contents(made.save_dir, pattern) == contents(job("a").save_dir, pattern)
    with_seeds = [np.load(job(n).save_dir / "samples.npz") for n in "ab" if format == "npz"]
    for key in ("samples", "labels", "seeds") if with_seeds else ():
        assert np.array_equal(with_seeds[0][key], with_seeds[1][key])


def test_a_stochastic_sample_depends_on_its_seed_alone(pull, job, one, contents):
    solver = fm.solvers.EulerMaruyama(steps=3)
    generate(pull, job("a", solver=solver, batch=4), one)
    generate(pull, job("b", solver=solver, seeds=[3, 11, 19], batch=1), one)
    a, b = (contents(job(name).save_dir, "0*.png") for name in "ab")
    assert len(b) == 3
    assert b.items() <= a.items()


def test_autoguidance_counts_both_networks(pull, job, one):
    weak = fm.Flow(torch.nn.Module(), shape=pull.shape)
    weak.network = pull.network
    made = job(guidance=Guidance(scale=2.0), weak_hash="w")
    record = generate(pull, made, one, weak=weak)
    assert (record["nfe"], record["autoguide"]) == (4, "w")
    with pytest.raises(ValueError, match="scale 1 is off; with --autoguide"):
        generate(pull, job("b"), one, weak=weak)
    other = fm.Flow(pull.network, shape=(3, 4, 4))
    with pytest.raises(ValueError, match="weak model's shape"):
        generate(pull, job("b", guidance=Guidance(scale=2.0)), one, weak=other)
