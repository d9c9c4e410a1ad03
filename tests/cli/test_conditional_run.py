"""A model of scalars, vectors and texts through the command: trained, sampled, measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import flowmatch as fm
from flowmatch.config import load_config, parse_config
from flowmatch.data import embedded
from flowmatch.data.texts import TextEncoder
from flowmatch.editing import sdedit
from flowmatch.flow import Flow
from flowmatch.tensors import to_uint8
from made_texts import columns, make_captioned, make_encoder, same

NETWORK = {
    "kind": "unet",
    "channels": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention_resolutions": [],
    "heads": 2,
    "scale_shift": True,
    "num_classes": 3,
    "conditions": {
        "age": {"kind": "scalar"},
        "clip": {"kind": "vector", "dim": 3},
        "caption": {"kind": "text", "dim": 16},
    },
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_captioned(tmp_path_factory.mktemp("set"), copies=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(cache))


def write_config(path: Path, place: Path, encoder: Path) -> Path:
    data = {"kind": "hub", "path": str(place), "image_size": 8, "label_column": "fine"}
    config = {
        "data": {**data, "conditions": columns(encoder)},
        "network": NETWORK,
        "loss": {"kind": "flow_matching", "label_dropout": 0.2},
        "train": {
            "steps": 6,
            "batch": 8,
            "lr": 1e-3,
            "log_every_steps": 2,
            "save_every_steps": 3,
            "samples": 6,
            "sample_every_steps": 6,
            "keep_last": 3,
            "ema": {"decay": 0.5},
        },
        "sample": {"solver": {"kind": "heun", "steps": 2}},
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@pytest.fixture
def config(tmp_path, place, encoder) -> Path:
    return write_config(tmp_path / "conditions.yaml", place, encoder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, place, encoder, cache) -> Path:
    """A run directory, trained to its end."""
    from accelerate.state import AcceleratorState

    from flowmatch.runs import build_trainer

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("conditional")
    path = write_config(folder / "conditions.yaml", place, encoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWMATCH_CACHE", str(cache))
        build_trainer(load_config(path), folder / "run").run()
    return folder / "run"


def drawn(folder: Path) -> np.ndarray:
    with np.load(folder / "samples.npz") as archive:
        return archive["samples"]


def record(folder: Path) -> dict:
    return json.loads((folder / "sampling.json").read_text())


def expected(run: Path, seeds: range, cond: dict) -> np.ndarray:
    flow = fm.load(run)
    x0 = fm.noise(seeds, (3, 8, 8), stream=8888)
    x1 = fm.sample(flow, x0, fm.solvers.Heun(steps=2), cond)
    return to_uint8(x1).permute(0, 2, 3, 1).numpy()


def test_it_resumes_bit_for_bit_and_every_condition_is_learned_from(
    flowmatch, config, run, tmp_path
):
    code, *_ = flowmatch("train", "-c", config, "-e", tmp_path / "a", "train.steps=3")
    assert code == 0
    code, *_ = flowmatch("train", "-e", tmp_path / "a", "--resume", "train.steps=6")
    assert code == 0
    for name in ("model", "model_ema"):
        resumed = load_file(tmp_path / f"a/ckpt/step0000006/{name}.safetensors")
        whole = load_file(run / f"ckpt/step0000006/{name}.safetensors")
        assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    begun = load_file(run / "ckpt/step0000003/model.safetensors")
    ended = load_file(run / "ckpt/step0000006/model.safetensors")
    moved = {k for k in begun if not torch.equal(begun[k], ended[k])}
    for part in ("age", "clip", "caption"):
        assert {k for k in moved if part in k}
    assert {k for k in moved if "caption" in k and "null" in k}  # dropped or empty
    assert (run / "samples/step0000006.png").is_file()


def test_workers_carry_them(flowmatch, config, run, tmp_path):
    words = ("data.memory_gib=0", "train.workers=2")
    code, *_ = flowmatch("train", "-c", config, "-e", tmp_path / "a", *words)
    assert code == 0
    one, other = (
        load_file(folder / "ckpt/step0000006/model.safetensors") for folder in (run, tmp_path / "a")
    )
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_without_a_word_samples_take_the_conditions_of_the_data(flowmatch, run, tmp_path):
    arguments = ("sample", run, "--format", "npz", "--save_dir", tmp_path / "a")
    code, _, err = flowmatch(*arguments, "--n_samples", 3)
    assert code == 0, err
    code, _, err = flowmatch(*arguments, "--n_samples", 7)  # goes on
    assert code == 0, err
    dataset = load_config(run / "config.yaml").data.build()
    cond = dataset.plain(torch.arange(7)).cond
    assert abs(drawn(tmp_path / "a").astype(int) - expected(run, range(7), cond)).max() <= 1
    assert flowmatch(*arguments, "--n_samples", 7, "data.memory_gib=0")[0] == 0
    said = record(tmp_path / "a")
    assert said["conditions"]["hub train"]["names"] == ["label", "age", "clip", "caption"]
    assert (said["classes"], said["label"], said["dealt"]) == (None, None, None)
    with np.load(tmp_path / "a/samples.npz") as archive:
        assert archive["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_edited_data_are_another_setting(flowmatch, run, tmp_path):
    edited = make_captioned(tmp_path / "set", copies=3)
    arguments = ("sample", run, f"data.path={edited}", "--save_dir", tmp_path / "a")
    assert flowmatch(*arguments, "--n_samples", 2)[0] == 0
    table = pq.read_table(edited / "train.parquet")
    at = table.column_names.index("age")
    ages = pa.array([0.2, *table["age"].to_pylist()[1:]])
    pq.write_table(table.set_column(at, "age", ages), edited / "train.parquet")
    code, _, err = flowmatch(*arguments, "--n_samples", 3)
    assert code == 2
    assert "holds samples of another setting (conditions was" in err


def test_prompts_and_values_are_dealt_in_turn(flowmatch, run, encoder, tmp_path):
    np.save(tmp_path / "clip.npy", np.eye(3)[:2])
    asked = ("--prompt", "a red bird", "--prompt", "a dog", "--cond", "age=0.5")
    asked += ("--cond", f"clip={tmp_path / 'clip.npy'}", "--class", 2)
    arguments = ("sample", run, "--format", "npz", "--n_samples", 5, "--save_dir", tmp_path / "a")
    code, _, err = flowmatch(*arguments, *asked)
    assert code == 0, err
    at = torch.arange(5) % 2
    texts = embedded(["a red bird", "a dog"], str(encoder), max_tokens=12)
    cond = {"label": torch.full((5,), 2), "age": torch.full((5,), 0.5)}
    cond |= {"clip": torch.eye(3)[:2][at], "caption": texts.rows(at)}
    assert abs(drawn(tmp_path / "a").astype(int) - expected(run, range(5), cond)).max() <= 1
    said = record(tmp_path / "a")
    assert said["label"] == 2
    assert said["conditions"]["caption"]["texts"] == ["a red bird", "a dog"]
    assert said["conditions"]["age"]["values"] == ["0.5"]
    assert flowmatch(*arguments, *asked)[0] == 0  # nothing left to do
    for words in (asked[2:], (*asked, "data.conditions.caption.max_tokens=3")):
        code, _, err = flowmatch(*arguments, *words)
        assert code == 2
        assert "holds samples of another setting (conditions was" in err
    code, _, err = flowmatch(*arguments, *asked[:-2])
    assert code == 2
    assert "holds samples of another setting (label was 2, is None; classes was 3, is None" in err


def test_what_is_not_said_is_absent(flowmatch, run, encoder, tmp_path):
    arguments = ("sample", run, "--format", "npz", "--n_samples", 2, "--save_dir", tmp_path / "a")
    assert flowmatch(*arguments, "--cond", "caption=a red bird")[0] == 0
    texts = embedded(["a red bird"], str(encoder), max_tokens=12)
    cond = {"caption": texts.rows(torch.zeros(2, dtype=torch.int64))}
    nulls = {"label": torch.full((2,), 3), "age": torch.full((2,), torch.nan)}
    found = drawn(tmp_path / "a").astype(int)
    assert abs(found - expected(run, range(2), cond)).max() <= 1
    assert abs(found - expected(run, range(2), {**cond, **nulls})).max() <= 1
    with np.load(tmp_path / "a/samples.npz") as archive:
        assert len(archive["labels"]) == 0


def test_guidance_is_towards_the_prompt(run, encoder):
    flow = fm.load(run).double()
    x, t = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9])
    texts = embedded(["a red bird", "dog"], str(encoder), max_tokens=12)
    cond = {"caption": texts.rows(torch.tensor([0, 1, 0])), "age": torch.tensor([0.1, 0.2, 0.3])}
    given, null = flow(x, t, cond), flow(x, t, flow.null(cond))
    assert not torch.allclose(given, null)
    torch.testing.assert_close(flow(x, t), null)
    guided = fm.Guided(flow, scale=2.5)(x, t, cond)
    torch.testing.assert_close(guided, null + 2.5 * (given - null))


def test_guided_samples_count_two_evaluations(flowmatch, run, tmp_path):
    arguments = ("--n_samples", 2, "--save_dir", tmp_path / "a", "--prompt", "dog")
    assert flowmatch("sample", run, *arguments, "--guidance", 2)[0] == 0
    assert record(tmp_path / "a")["nfe"] == 8
    assert len(list((tmp_path / "a").glob("0*.png"))) == 2


def test_edited_towards_a_prompt(flowmatch, run, encoder, tmp_path):
    words = ("--data", "train", "--count", 3, "--strength", 0.5, "--steps", 2)
    asked = ("--prompt", "a red bird", "--prompt", "dog", "--class", 1)
    code, _, err = flowmatch("edit", "sdedit", run, *words, *asked, "-o", tmp_path / "a")
    assert code == 0, err
    texts = embedded(["a red bird", "dog"], str(encoder), max_tokens=12)
    cond = {"caption": texts.rows(torch.tensor([0, 1, 0])), "label": torch.ones(3).long()}
    x = load_config(run / "config.yaml").data.build().plain(torch.arange(3)).x1
    x1 = sdedit(fm.load(run), x, 0.5, fm.solvers.Heun(steps=2), cond, seeds=range(3))
    for path, image in zip(sorted((tmp_path / "a").glob("train*")), to_uint8(x1), strict=True):
        found = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        assert int((found.int() - image.int()).abs().max()) <= 1
    told = json.loads((tmp_path / "a/edit.json").read_text())
    assert told["conditions"]["caption"]["texts"] == ["a red bird", "dog"]
    frames = ("--data", "train", "--frames", 3, "--steps", 2, "--cond", "age=0.5")
    assert flowmatch("edit", "interpolate", run, *frames, "-o", tmp_path / "b")[0] == 0
    code, _, err = flowmatch("edit", "sdedit", run, *words, "--cond", "a=1", "-o", tmp_path / "c")
    assert code == 2
    assert "cannot read --cond 'a=1'" in err


def test_no_text_is_embedded_twice(flowmatch, run, monkeypatch, tmp_path):
    arguments = ("sample", run, "--n_samples", 2, "--prompt", "with a hat", "--save_dir")
    assert flowmatch(*arguments, tmp_path / "a")[0] == 0

    def refuse(self, name):
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(TextEncoder, "__init__", refuse)
    load_config(run / "config.yaml").data.build()
    assert flowmatch(*arguments, tmp_path / "b")[0] == 0
    assert (tmp_path / "a/00000.png").read_bytes() == (tmp_path / "b/00000.png").read_bytes()


def test_evaluated_by_the_conditions_of_the_data(flowmatch, run, config, tmp_path):
    words = ("--num-samples", 20, "--solvers", "euler:1", "--json", tmp_path / "a.json")
    code, out, err = flowmatch("evaluate", run, *words)
    assert code == 0, err
    document = json.loads((tmp_path / "a.json").read_text())
    told = "label, age, clip, caption of the training data in turn"
    assert document["protocol"]["samples"]["labels"] == told
    assert told in out
    often = ("train.evaluate_every_steps=3", "train.evaluate_samples=20", "train.steps=3")
    code, out, err = flowmatch("train", "-c", config, "-e", tmp_path / "b", *often)
    assert code == 0, err
    assert told in out


def test_measured_and_looked_at_by_the_conditions_of_the_data(flowmatch, run, tmp_path):
    code, _, err = flowmatch("likelihood", run, "--num-samples", 2, "--solver", "heun:2")
    assert code == 0, err
    (path,) = (run / "likelihood").glob("*.json")
    document = json.loads(path.read_text())
    told = "given label, age, clip, caption of the data"
    assert f"{told} {document['protocol']['data']['conditions']}" in document["sentence"]
    code, _, err = flowmatch("look", run, "--out", tmp_path / "look")
    assert code == 0, err
    tuned = ("--nfe", 4, "--num-samples", 2, "--reference-steps", 10, "--solvers", "heun")
    code, _, err = flowmatch("tune", run, *tuned)
    assert code == 0, err


def test_a_network_that_the_data_do_not_suit_is_refused_before_anything_is_written(
    flowmatch, config, tmp_path, monkeypatch
):
    def refuse(*arguments, **options):
        raise AssertionError("texts were embedded")

    def refused(*overrides):
        code, _, err = flowmatch("train", "-c", config, "-e", tmp_path / "a", *overrides)
        assert code == 2
        assert not (tmp_path / "a").exists()
        assert len(err.strip().splitlines()) == 1
        return err

    more = ("network.conditions.year.kind=scalar",)
    with monkeypatch.context() as patch:
        patch.setattr("flowmatch.data.columns.embedded", refuse)
        said = refused(*more)
    assert "network.conditions has year, but the data set hub gives only age, clip, caption" in said
    said = refused("network.conditions.clip.dim=4")
    assert "network.conditions.clip is a vector of dim 4, but that of the data is a vector" in said
    said = refused("network.conditions.caption.dim=8")
    assert "caption is a text of dim 8, but that of the data is a text of dim 16" in said
    assert "age is a vector of dim 3" in refused(
        "network.conditions.age.kind=vector", "network.conditions.age.dim=3"
    )
    assert "network.num_classes is 5" in refused("network.num_classes=5")
    said = refused("network.conditions.age.lo=1")
    assert "network.conditions.age.lo: unknown key; did you mean low?" in said
    said = refused("data.conditions.age.kind=numbers")
    assert "data.conditions.age.kind: unknown kind 'numbers'; " in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cond", "year=3"), "cannot read --cond 'year=3'; write NAME=VALUE with a name among"),
        (("--cond", "age"), "cannot read --cond 'age'"),
        (("--cond", "age=young"), "age takes a number or a .npy file [N]"),
        (("--cond", "age=inf"), "is infinite; age takes finite numbers, and nan for none"),
        (("--cond", "clip=3"), "clip takes a .npy file [N, dim] with dim 3"),
        (("--cond", "clip=no.npy"), "cannot read --cond clip=no.npy (No such file"),
        (("--cond", "clip=empty.npy"), "cannot read --cond clip=empty.npy (No data left in file)"),
        (("--cond", "clip=complex.npy"), "(it holds complex128, no real numbers); clip takes"),
        (("--cond", "clip=archive.npy"), "(it holds archives, no real numbers); clip takes"),
    ],
)
def test_mistakes_are_one_sentence(flowmatch, run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.npy").touch()
    np.save("complex.npy", np.full(3, 1j))
    np.savez("archive", np.zeros(3))
    Path("archive.npz").rename("archive.npy")
    arguments = ("sample", run, "--n_samples", 2, "--save_dir", tmp_path / "a")
    code, _, err = flowmatch(*arguments, *words)
    assert code == 2
    assert message in err.replace("\n", " ")
    assert not (tmp_path / "a").exists()


def test_a_model_of_classes_takes_no_prompt(flowmatch, trained, tmp_path):
    arguments = ("sample", trained, "--n_samples", 2, "--save_dir", tmp_path / "a")
    code, _, err = flowmatch(*arguments, "--prompt", "a red bird")
    assert code == 2
    assert "takes no condition besides a class; leave out --prompt and --cond" in err


def test_data_that_went_away_are_missed_only_without_a_prompt(flowmatch, run, tmp_path):
    gone = f"data.path={tmp_path / 'gone'}.parquet"
    code, _, err = flowmatch("sample", run, gone, "--n_samples", 2, "--save_dir", tmp_path / "a")
    assert code == 2
    said = "this model is given the conditions of the training data"
    assert f"without --prompt or --cond {said}" in err
    code, _, err = flowmatch("evaluate", run, gone, "--num-samples", 20)
    assert code == 2
    assert said in err
    words = ("--n_samples", 2, "--save_dir", tmp_path / "a", "--prompt", "dog")
    assert flowmatch("sample", run, gone, *words)[0] == 0


def test_the_flow_of_a_run_knows_its_nulls(run):
    flow = fm.load(run)
    assert isinstance(flow, Flow)
    assert set(flow.nulls) == {"label", "age", "clip", "caption"}
    cond = {"age": torch.zeros(2), "height": torch.zeros(2)}
    assert flow.known(cond).keys() == {"age"}
    assert flow.known({"height": torch.zeros(2)}) is None
    assert same(flow.null({"age": torch.zeros(2)})["age"], torch.full((2,), torch.nan))


def blocks(language: str) -> list[str]:
    """The code of a language in the documentation of conditions."""
    text = (Path(__file__).parents[2] / "docs/training.md").read_text()
    section = text.split("\n## Conditions\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_the_documentation_of_conditions(flowmatch, run, tmp_path, monkeypatch):
    (config,) = (yaml.safe_load(block) for block in blocks("yaml"))
    assert parse_config(config).data.conditions["caption"].max_tokens == 77
    (commands,) = blocks("sh")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/birds").symlink_to(run)
    np.save("emb.npy", np.eye(3))
    ours = {"weight=0.3": "age=0.3", "emb=emb.npy": "clip=emb.npy", "64": "2"}
    for line in commands.splitlines():
        words = [ours.get(word, word) for word in shlex.split(line)]
        code, _, err = flowmatch(*words[1:])
        assert code == 0, f"{line}\n{err}"
    (python,) = blocks("python")
    exec(compile(python.replace("2_000", "3"), "docs/training.md", "exec"), {})
