"""`flowmatch evaluate`, `compare` and `reference`, from words to numbers."""

import json

import numpy as np
import pytest
import torch
import yaml

from flowmatch.data import Digits


@pytest.fixture(autouse=True)
def _cache(fitted_cache, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(fitted_cache))


@pytest.fixture
def digits_npz(tmp_path):
    """Held-out digits as stored samples, with labels."""
    digits = Digits().build("test")
    path = tmp_path / "digits.npz"
    np.savez(path, samples=digits.x.permute(0, 2, 3, 1).numpy(), labels=digits.labels.numpy())
    return path


SOLVERS = ("--solvers", "euler:2,4", "heun:1")
FEW = ("--num-samples", 40, "--bspp", 16)


def test_a_run_gives_table_picture_and_json(flowmatch, trained, tmp_path):
    before = set((trained / "evaluation").glob("*"))
    code, out, err = flowmatch("evaluate", trained, *FEW, "--repeats", 2, *SOLVERS, "--seed", 1)
    assert code == 0, err
    new = set((trained / "evaluation").glob("*")) - before
    (path,) = (p for p in new if p.suffix == ".json")
    document = json.loads(path.read_text())
    rows = {(r["solver"], r["steps"]): r for r in document["rows"]}
    assert list(rows) == [("euler", 2), ("euler", 4), ("heun", 1)]
    assert [r["nfe"] for r in rows.values()] == [2, 4, 2]
    row = rows["euler", 4]
    assert {"fd_data", "kd_data", "precision", "recall", "nn_ratio", "authentic"} <= set(
        row["metrics"]
    )
    assert row["spread"]["fd_data"] >= 0
    assert row["seconds"] > 0
    assert sum(row["classes"]["requested"]) == 40
    assert (path.parent / row["grid"]).is_file()
    assert path.with_suffix(".png").is_file()
    assert document["protocol"]["model"]["images_seen"] == 96
    assert document["protocol"]["reference"]["count"] == 1437
    assert document["anchors"]["held-out data"]["metrics"]["fd_data"] < row["metrics"]["fd_data"]
    assert "| euler" in out
    assert row["protocol"].split(" | ")[0] in out
    assert "solver, steps and NFE as in the row" in out
    assert "% right on 360 held-out images" in out
    assert "40 samples for" in err  # fewer samples than features: said, with the bias


def test_a_second_sweep_keeps_the_rows_and_adds_to_them(flowmatch, trained):
    arguments = ("evaluate", trained, *FEW, "--seed", 2)
    assert flowmatch(*arguments, "--solvers", "euler:2")[0] == 0
    code, out, _ = flowmatch(*arguments, "--solvers", "euler:2", "euler:3")
    assert code == 0
    assert "euler:3  fd_data" in out
    assert "euler:2  fd_data" not in out  # not computed again
    assert out.count("\n| euler ") == 2


def test_another_field_of_the_same_weights_has_rows_of_its_own(flowmatch, trained):
    arguments = ("evaluate", trained, *FEW, "--seed", 4, "--solvers", "euler:2")
    found = []
    for words in ((), ("path={kind: trig}",), ("network.time_scale=10",), ("train.lr=1",)):
        before = set((trained / "evaluation").glob("*.json"))
        code, out, err = flowmatch(*arguments, *words)
        assert code == 0, err
        found.append(set((trained / "evaluation").glob("*.json")) - before)
        assert ("1 of 1 rows are there already" in out) == (words == ("train.lr=1",))
    assert [len(new) for new in found] == [1, 1, 1, 0]
    (own,), (other,) = found[:2]
    assert flowmatch("compare", own, other)[0] == 0


def test_what_was_sampled_gives_the_number_of_the_run(flowmatch, trained, tmp_path, digits_npz):
    sampling = ("--n_samples", 30, "--seed", 3, "--sampling_method", "euler")
    folder = tmp_path / "drawn"
    assert (
        flowmatch("sample", trained, *sampling, "--sampling_steps", 3, "--save_dir", folder)[0] == 0
    )
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"kind": "digits"}))
    stored, drawn = tmp_path / "stored.json", tmp_path / "drawn.json"
    code, _, err = flowmatch("evaluate", folder, "--reference", config, "--json", stored)
    assert code == 0, err
    few = ("--num-samples", 30, "--seed", 3, "--solvers", "euler:3", "--json", drawn)
    assert flowmatch("evaluate", trained, *few)[0] == 0
    a, b = (json.loads(p.read_text())["rows"][0]["metrics"] for p in (stored, drawn))
    assert a["fd_data"] == pytest.approx(b["fd_data"], rel=1e-4)
    assert a["recall"] == b["recall"]


def test_real_images_beat_the_model_and_the_model_beats_shuffled_pixels(
    flowmatch, root, tmp_path, digits_npz
):
    run = tmp_path / "run"
    short = (
        "train.steps=150",
        "train.images=null",
        "train.evaluate_every_images=null",
        "train.sample_every_steps=null",
    )
    assert flowmatch("train", "-c", root / "configs/digits.yaml", "-e", run, *short)[0] == 0
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"kind": "digits"}))
    real, model = tmp_path / "real.json", tmp_path / "model.json"
    arguments = ("--reference", config, "--num-samples", 360, "--json", real)
    assert flowmatch("evaluate", digits_npz, *arguments)[0] == 0
    arguments = ("--num-samples", 360, "--solvers", "heun:5", "--json", model)
    assert flowmatch("evaluate", run, *arguments)[0] == 0
    document = json.loads(model.read_text())
    real = json.loads(real.read_text())["rows"][0]["metrics"]
    drawn = document["rows"][0]["metrics"]
    shuffled = document["anchors"]["its pixels shuffled"]["metrics"]
    for metric in ("fd_data", "kd_data"):  # three sets of 360 images each
        assert 2 * real[metric] < drawn[metric]
        assert 2 * drawn[metric] < shuffled[metric]
    assert real["class_agreement"] > 0.95


def test_compare_ranks_equal_protocols_and_refuses_others(flowmatch, trained, tmp_path):
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    for path, weights, count in zip(paths, ("ema", "model", "ema"), (40, 40, 41), strict=True):
        arguments = ("--num-samples", count, "--solvers", "euler:2", "--weights", weights)
        assert flowmatch("evaluate", trained, *arguments, "--json", path)[0] == 0
    code, out, _ = flowmatch("compare", paths[0], paths[1])
    assert code == 0
    assert "fd_data" in out
    assert "better: " in out
    code, _, err = flowmatch("compare", paths[0], paths[2])
    assert code == 2
    assert "samples.count is 40" in err
    assert "Traceback" not in err


def test_a_reference_file_is_shared_and_used(flowmatch, trained, tmp_path, monkeypatch):
    config, file = tmp_path / "data.yaml", tmp_path / "digits.safetensors"
    config.write_text(yaml.safe_dump({"kind": "digits"}))
    code, out, err = flowmatch("reference", config, "-o", file)
    assert code == 0, err
    assert "1,437 images of digits train" in out
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path / "elsewhere"))  # as on another machine
    with_file, without = tmp_path / "with.json", tmp_path / "without.json"
    for path, extra in ((with_file, ("--reference", file)), (without, ())):
        code, _, err = flowmatch(
            *("evaluate", trained, *FEW, "--solvers", "euler:2", "--json", path), *extra
        )
        assert code == 0, err
    a, b = (json.loads(p.read_text()) for p in (with_file, without))
    assert a["protocol"] == b["protocol"]
    assert a["rows"][0]["metrics"] == b["rows"][0]["metrics"]


def test_the_test_split_as_reference(flowmatch, trained, tmp_path):
    arguments = ("--reference", "test", "--solvers", "euler:2", "--json", tmp_path / "a.json")
    assert flowmatch("evaluate", trained, *FEW, *arguments)[0] == 0
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["protocol"]["reference"]["name"] == "digits test"
    assert "anchors" not in document  # the held-out data cannot be its own yardstick


def test_points_have_their_own_metrics(flowmatch, root, tmp_path):
    run = tmp_path / "toy"
    few = ("train.steps=30", "train.batch=64", "train.samples=50", "network.width=32")
    assert flowmatch("train", "-c", root / "configs/toy.yaml", "-e", run, *few)[0] == 0
    code, out, err = flowmatch("evaluate", run, "--num-samples", 300, "--solvers", "heun:4")
    assert code == 0, err
    (path,) = (run / "evaluation").glob("*.json")
    document = json.loads(path.read_text())
    assert set(document["rows"][0]["metrics"]) == {"w2", "sliced_w2", "mmd2", "energy", "c2st"}
    assert document["transport"]["path_energy"] > document["transport"]["straightness"] > 0
    real = document["anchors"]["held-out data"]
    assert real["count"] == 300
    assert real["metrics"]["w2"] < document["rows"][0]["metrics"]["w2"]
    assert "path_energy" in out
    code, _, err = flowmatch("evaluate", run, "--features", "data")
    assert code == 2
    assert "are no images; leave out --features" in err


def test_points_that_diverge_end_in_a_table_without_numbers(flowmatch, root, tmp_path):
    from safetensors.torch import load_file, save_file

    run = tmp_path / "toy"
    few = ("train.steps=2", "train.batch=8", "network.width=8", "train.sample_every_steps=null")
    assert flowmatch("train", "-c", root / "configs/toy.yaml", "-e", run, *few)[0] == 0
    path = run / "ckpt/step0000002/model_ema.safetensors"
    save_file({k: v * torch.inf for k, v in load_file(path).items()}, path)
    arguments = ("evaluate", run, "--num-samples", 20, "--solvers", "euler:2")
    for _ in range(2):
        code, out, err = flowmatch(*arguments)
        assert code == 0, err
        assert "none" in out or "nan" in out
    assert "1 of 1 rows are there already" in out


def test_a_folder_sorted_by_class_is_measured_as_a_whole(flowmatch, tmp_path):
    digits, by_class = Digits().build("test"), Digits().build("test").labels.argsort()
    reference = tmp_path / "digits.yaml"
    reference.write_text(yaml.safe_dump({"kind": "digits"}))
    found = []
    for name, order in (("sorted", by_class), ("mixed", torch.arange(360))):
        images = digits.x[order].permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / f"{name}.npz", samples=images)
        out = tmp_path / f"{name}.json"
        arguments = ("--num-samples", 120, "--reference", reference, "--json", out)
        assert flowmatch("evaluate", tmp_path / f"{name}.npz", *arguments)[0] == 0
        found.append(json.loads(out.read_text())["rows"][0]["metrics"]["fd_data"])
    assert found[0] == pytest.approx(found[1], rel=0.4)


def test_the_fitted_net_of_a_reference_file_serves_as_feature_weights(flowmatch, trained, tmp_path):
    config, file = tmp_path / "data.yaml", tmp_path / "digits.safetensors"
    config.write_text(yaml.safe_dump({"kind": "digits"}))
    assert flowmatch("reference", config, "-o", file)[0] == 0
    arguments = ("--solvers", "euler:2", "--json", tmp_path / "a.json", "--feature-weights", file)
    code, _, err = flowmatch("evaluate", trained, *FEW, *arguments)
    assert code == 0, err


def test_nan_weights_are_counted_not_dropped(flowmatch, trained, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = run / "ckpt/step0000006/model_ema.safetensors"
    weights = load_file(path)
    name = next(k for k in weights if k.startswith("label_emb") or "label" in k)
    weights[name][3] = torch.nan  # one class of ten is broken
    save_file(weights, path)
    arguments = ("--num-samples", 50, "--solvers", "euler:2", "--json", tmp_path / "a.json")
    code, _, err = flowmatch("evaluate", run, *arguments)
    assert code == 0, err
    assert "5 of 50 samples of euler hold NaN" in err
    row = json.loads((tmp_path / "a.json").read_text())["rows"][0]
    assert row["nonfinite"] == 5
    assert row["metrics"]["fd_data"] > 0


WRONG = {
    "nothing": (("none",), "there is no folder or file none"),
    "two subjects": (("a", "b"), "give one run directory or set of samples, got 2"),
    "stored without reference": (("{npz}",), "--reference"),
    "stored with solvers": (("{npz}", "--solvers", "euler:5"), "mean nothing for it"),
    "an unknown solver": (("{run}", "--solvers", "eulr:5"), "did you mean euler"),
    "no samples": (("{run}", "--num-samples", "0"), "--num-samples must be at least 10"),
    "nine samples": (("{run}", "--num-samples", "9"), "--num-samples must be at least 10"),
    "a folder as JSON": (("{run}", "--json", "{folder}"), "is a folder"),
    "no repeats": (("{run}", "--repeats", "0"), "must be at least 1"),
    "too many stored": (
        ("{npz}", "--reference", "{npz}", "--num-samples", "400"),
        "there are 360",
    ),
    "another resolution": (("{run}", "--reference", "{big}"), "--resize-reference"),
    "a missing checkpoint": (("{run}", "--checkpoint", "nowhere"), "nowhere"),
    "missing feature weights": (
        ("{run}", "--feature-weights", "none.safetensors"),
        "none.safetensors",
    ),
    "missing inception weights": (
        ("{run}", "--features", "inception", "--feature-weights", "none.pth"),
        "none.pth",
    ),
    "nan guidance": (("{run}", "--guidance", "nan"), "finite"),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_end_in_one_sentence(
    flowmatch, trained, digits_npz, tmp_path, arguments, sentence
):
    big = tmp_path / "big.yaml"
    big.write_text(yaml.safe_dump({"kind": "digits", "image_size": 16}))
    names = {"{run}": trained, "{npz}": digits_npz, "{big}": big, "{folder}": tmp_path}
    code, _, err = flowmatch("evaluate", *(names.get(a, a) for a in arguments))
    assert code == 2, err
    assert sentence in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_statistics_are_enough_where_the_data_are_gone(flowmatch, trained, tmp_path, monkeypatch):
    import shutil

    run, config, file = tmp_path / "run", tmp_path / "data.yaml", tmp_path / "digits.safetensors"
    config.write_text(yaml.safe_dump({"kind": "digits"}))
    assert flowmatch("reference", config, "-o", file)[0] == 0
    shutil.copytree(trained, run)
    for path in (run / "config.yaml", run / "ckpt/step0000006/config.yaml"):
        content = yaml.safe_load(path.read_text())
        content["data"] = {"kind": "mnist", "root": str(tmp_path), "image_size": 8}
        path.write_text(yaml.safe_dump(content))
    monkeypatch.delenv("FLOWMATCH_DATA", raising=False)
    code, out, err = flowmatch(
        *("evaluate", run, *FEW, "--solvers", "euler:2", "--reference", file, "--json"),
        tmp_path / "a.json",
    )
    assert code == 0, err
    assert "copies of the training data are not looked for" in out
    metrics = json.loads((tmp_path / "a.json").read_text())["rows"][0]["metrics"]
    assert "fd_data" in metrics
    assert "nn_samples" not in metrics
    code, _, err = flowmatch("evaluate", run, *FEW)
    assert code == 2
    assert "mnist" in err.lower()


def test_inception_with_weights_from_a_file(flowmatch, tmp_path, inception_file):
    digits = Digits().build("test").x.permute(0, 2, 3, 1).numpy()
    for name, rows in (("a", slice(12)), ("b", slice(12, 24))):
        np.savez(tmp_path / f"{name}.npz", samples=digits[rows])
    arguments = ("--features", "inception", "--feature-weights", inception_file)
    arguments += ("--reference", tmp_path / "b.npz", "--json", tmp_path / "a.json")
    code, out, err = flowmatch("evaluate", tmp_path / "a.npz", *arguments)
    assert code == 0, err
    assert "12 samples for 2,048 features: fid is biased upwards" in err
    metrics = json.loads((tmp_path / "a.json").read_text())["rows"][0]["metrics"]
    assert {"fid", "fid_excess", "kid", "is", "precision", "recall"} <= set(metrics)
    assert "features inception" in out
