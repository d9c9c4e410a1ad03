"""`flowmatch ema` and weights by name: from snapshots to samples that say what they are of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import flowmatch as fm
from flowmatch.config import load_config
from flowmatch.runs import build_trainer
from flowmatch.training.weights import hash_weights, read_header

OPTIONS = (
    "train.ema=[{decay: 0.9}, {kind: power, std: 0.1}]",
    "train.post_hoc={stds: [0.05, 0.1], every_steps: 2}",
    "train.steps=24",
    "train.save_every_steps=null",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained) -> Path:
    """A run directory with snapshots."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("made")
    config = load_config(trained.parent / "tiny.yaml", OPTIONS)
    build_trainer(config, folder / "run").run()
    return folder / "run"


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of it, to write into."""
    return shutil.copytree(made, tmp_path / "run")


SAMPLING = ("--n_samples", 4, "--sampling_steps", 1)


def test_an_average_of_another_width(flowmatch, run):
    code, out, err = flowmatch("ema", run, "--std", 0.075)
    assert code == 0, err
    path = run / "ema/std0.075-step0000024.safetensors"
    assert path.is_file()
    assert "EMA std 0.075, post-hoc, at 384 images, from 24 snapshots; its profile is off by" in out
    assert f"flowmatch sample {run} --weights {path}" in out
    header = read_header(path)
    assert (header["title"], header["images"]) == ("EMA std 0.075, post-hoc", "384")
    # it lies between the two that were tracked
    wide, narrow, between = (
        torch.cat([v.flatten() for v in load_file(p).values()])
        for p in (
            run / "ckpt/step0000024/model_ema-std0.1.safetensors",
            run / "ckpt/step0000024/model_ema-std0.05.safetensors",
            path,
        )
    )
    assert (between - narrow).norm() < (wide - narrow).norm()
    assert (between - wide).norm() < (wide - narrow).norm()


def test_a_width_that_was_tracked_is_what_was_tracked(flowmatch, run, tmp_path):
    out = tmp_path / "elsewhere/exact.safetensors"
    assert flowmatch("ema", run, "--std", 0.1, "-o", out)[0] == 0
    tracked = load_file(run / "ckpt/step0000024/model_ema-std0.1.safetensors")
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, tracked[name], rtol=1e-5, atol=1e-7)


def test_an_earlier_time(flowmatch, run):
    assert flowmatch("ema", run, "--std", 0.1, "--images", 192)[0] == 0
    made = load_file(run / "ema/std0.1-step0000012.safetensors")
    kept = load_file(run / "ema/snapshot-step0000012-std0.1.safetensors")
    for name, value in made.items():
        torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--std", 0.3), r"lies in (0, 0.28867]"),
        (("--std", 0.001), "cannot be put together from the 24 snapshots"),
        (("--std", 0.1, "--images", 1000), "are of 32 to 384 images, got --images 1000"),
        (("--std", 0.1, "-o", "average.pt"), "to a .safetensors file, not to average.pt"),
    ],
)
def test_mistakes(flowmatch, made, arguments, message):
    code, _, err = flowmatch("ema", made, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_run_without_snapshots(flowmatch, trained):
    code, _, err = flowmatch("ema", trained, "--std", 0.1)
    assert code == 2
    assert "holds no snapshots of averages; train with e.g. train.post_hoc.every_images" in err


def test_samples_say_of_which_average_they_are(flowmatch, run, tmp_path):
    assert flowmatch("ema", run, "--std", 0.075)[0] == 0
    made = run / "ema/std0.075-step0000024.safetensors"
    checkpoint = run / "ckpt/step0000024"
    for weights, title, path in (
        (None, "EMA decay 0.9", checkpoint / "model_ema.safetensors"),
        ("ema", "EMA decay 0.9", checkpoint / "model_ema.safetensors"),
        ("decay0.9", "EMA decay 0.9", checkpoint / "model_ema.safetensors"),
        ("std0.1", "EMA std 0.1", checkpoint / "model_ema-std0.1.safetensors"),
        ("model", "raw", checkpoint / "model.safetensors"),
        (made, "EMA std 0.075, post-hoc", made),
    ):
        chosen = () if weights is None else ("--weights", weights)
        folder = tmp_path / "samples" / str(weights).replace("/", "-")
        code, _, err = flowmatch("sample", run, *chosen, *SAMPLING, "--save_dir", folder)
        assert code == 0, err
        record = json.loads((folder / "sampling.json").read_text())
        assert (record["average"], record["weights"]) == (title, hash_weights(path))


def test_an_average_that_was_made_is_found_by_the_path_that_the_message_gives(
    flowmatch, run, tmp_path
):
    assert flowmatch("ema", run, "--std", 0.07)[0] == 0
    words = (*SAMPLING, "--save_dir", tmp_path / "a")
    code, _, err = flowmatch("sample", run, *words, "--weights", "std0.07")
    assert code == 2
    path = " ".join(err.split()).partition("give its path: ")[2]
    assert path == f"{run}/ema/std0.07-step0000024.safetensors"


def test_a_config_and_a_file_as_before(flowmatch, run, tmp_path):
    file = run / "ckpt/step0000024/model_ema-std0.05.safetensors"
    door = ("-c", run / "config.yaml", "--weights", file)
    assert flowmatch("sample", *door, *SAMPLING, "--save_dir", tmp_path / "a")[0] == 0
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    assert record["average"] == "EMA std 0.05"
    code, _, err = flowmatch("sample", run, *door, *SAMPLING, "--save_dir", tmp_path / "b")
    assert code == 2
    assert "not both" in err
    door = ("-c", run / "config.yaml", "--weights", "std0.05")
    code, _, err = flowmatch("sample", *door, *SAMPLING, "--save_dir", tmp_path / "b")
    assert code == 2
    assert "there is no weights file at std0.05" in err


@pytest.mark.parametrize("command", ["sample", "evaluate", "likelihood", "edit", "tune"])
def test_weights_that_there_are_not_end_in_a_list_of_those_that_there_are(
    flowmatch, made, tmp_path, command
):
    more = {
        "sample": (*SAMPLING, "--save_dir", tmp_path / "a"),
        "edit": ("--data", "test", "-o", tmp_path / "b"),
        "tune": ("--nfe", 4),
    }
    words = ("edit", "inpaint") if command == "edit" else (command,)
    code, _, err = flowmatch(*words, made, *more.get(command, ()), "--weights", "std0.2")
    assert code == 2, err
    assert "there are no weights 'std0.2'" in err
    assert "step0000024 has ema (which is decay0.9), std0.1, std0.05 and model" in err


def test_a_protocol_names_the_average(flowmatch, tmp_path):
    """Of points, which need no features fitted to them."""
    config, run = tmp_path / "toy.yaml", tmp_path / "run"
    config.write_text(
        "{data: {kind: toy, name: moons, samples: 100}, network: {kind: mlp, width: 8}, train:"
        " {steps: 24, batch: 16, ema: {decay: 0.9}, post_hoc: {every_steps: 2}}}"
    )
    assert flowmatch("train", "-c", config, "-e", run)[0] == 0
    assert flowmatch("ema", run, "--std", 0.075, "--images", 352)[0] == 0
    made = run / "ema/std0.075-step0000022.safetensors"
    few = ("--num-samples", 20, "--solvers", "euler:1")
    for number, (weights, title, step) in enumerate(
        [("ema", "EMA decay 0.9", 24), (made, "EMA std 0.075, post-hoc", 22), ("model", "raw", 24)]
    ):
        path = tmp_path / f"{number}.json"
        code, out, err = flowmatch("evaluate", run, *few, "--weights", weights, "--json", path)
        assert code == 0, err
        model = json.loads(path.read_text())["protocol"]["model"]
        assert (model["weights"], model["step"]) == (title, step)
        assert model["images_seen"] == 16 * step
        named = f"{title} weights {model['hash']}, field {model['field']}"
        assert f"{named}, {16 * step} images seen" in out
    # what differs is what is compared
    assert flowmatch("compare", tmp_path / "0.json", tmp_path / "1.json")[0] == 0


def test_a_file_may_be_guided_away_from_the_weights_as_trained(flowmatch, run, tmp_path):
    assert flowmatch("ema", run, "--std", 0.075)[0] == 0
    file = run / "ema/std0.075-step0000024.safetensors"
    guided = ("--weights", file, "--autoguide", "model", "--guidance", 2)
    code, _, err = flowmatch("sample", run, *guided, *SAMPLING, "--save_dir", tmp_path / "a")
    assert code == 0, err


def test_from_python(run):
    own, other = fm.load(run), fm.load(run, weights="std0.1")
    path = run / "ckpt/step0000024/model_ema-std0.1.safetensors"
    file = fm.load(run, weights=str(path))
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    label = torch.tensor([0, 1])
    assert torch.equal(other(x, t, label), file(x, t, label))
    assert not torch.equal(other(x, t, label), own(x, t, label))
