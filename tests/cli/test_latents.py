"""A run on latents, through the command: images come out, and are what is measured."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from flowmatch.config import load_config
from flowmatch.data import Digits
from flowmatch.features.convnet import Architecture, ConvNet
from flowmatch.features.fittednet import Facts, FittedNet
from flowmatch.runs import build_trainer, load
from flowmatch.sampling import noise, sample
from flowmatch.solvers import Heun
from flowmatch.tensors import to_uint8
from flowmatch.training.tracking import read_metrics
from made_data import make_autoencoder

CONFIG = """
data:
  kind: latent
  images: {{kind: digits, image_size: 32}}
  autoencoder: {folder}/autoencoder
  cache: {folder}/cache
network: {{kind: unet, channels: 8, multipliers: [1, 1], blocks: 1, num_classes: 10}}
train:
  {{steps: 4, batch: 8, log_every_steps: 2, save_every_steps: 2, sample_every_steps: 4,
    samples: 10}}
sample: {{solver: {{kind: heun, steps: 2}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an autoencoder, a config, and a run of four steps."""
    folder = tmp_path_factory.mktemp("latents")
    make_autoencoder(folder / "autoencoder", channels=1)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    train(folder, "run")
    return folder


def train(folder, name, *overrides, steps=4):
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = load_config(folder / "config.yaml", [f"train.steps={steps}", *overrides])
    return build_trainer(settings, folder / name).run()


def test_the_run_keeps_its_statistics_and_shows_images(folder):
    kept = load_config(folder / "run/config.yaml").data.statistics
    assert len(kept.mean) == len(kept.std) == 2
    assert load_config(folder / "run/ckpt/step0000004/config.yaml").data.statistics == kept
    with Image.open(folder / "run/samples/step0000004.png") as sheet:
        assert sheet.size == (10 * 34 + 2, 36)
    (seen,) = [r for r in read_metrics(folder / "run/metrics.jsonl") if "clip_share" in r]
    assert 0 <= seen["clip_share"] <= 1


def test_resuming_is_never_having_stopped(folder, flowmatch):
    config, run = folder / "config.yaml", folder / "resumed"
    assert flowmatch("train", "-c", config, "-e", run, "train.steps=2")[0] == 0
    code, out, err = flowmatch("train", "-c", config, "-e", run, "-r", "train.steps=4")
    assert code == 0, err
    assert "data.statistics" not in out  # the run's own go on
    for file in ("model.safetensors", "model_ema.safetensors"):
        one, other = (
            load_file(folder / name / "ckpt/step0000004" / file) for name in ("run", "resumed")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.images.image_size=8", "network={kind: dit, patch: 8}"), "patch"),
        (("network.num_classes=5",), "network.num_classes is 5, but the data set latent has 10"),
        (("--resume", "best"), "has no best checkpoint"),
        (("train.keep_last=1000000000000",), "no space left"),
    ],
)
def test_mistakes_are_found_before_anything_is_encoded(
    folder, flowmatch, tmp_path, monkeypatch, words, message
):
    def encoded(*arguments, **options):
        raise AssertionError("the images were encoded")

    monkeypatch.setattr("flowmatch.data.latent.encoded", encoded)
    run = folder / "run" if "--resume" in words else tmp_path / "run"
    code, _, err = flowmatch("train", "-c", folder / "config.yaml", "-e", run, *words)
    assert code == 2, err
    assert message in " ".join(err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format", ["png", "npz", "webdataset"])
def test_samples_are_decoded(folder, flowmatch, tmp_path, format):
    out = tmp_path / "out"
    code, _, err = flowmatch(
        *("sample", folder / "run", "--n-samples", 5, "--save-dir", out, "--bspp", 3),
        *("--format", format),
    )
    assert code == 0, err
    flow = load(folder / "run")
    x0, labels = noise(range(5), flow.shape, stream=8888), torch.arange(5)
    expected = to_uint8(flow.decode(sample(flow, x0, Heun(steps=2), labels))).numpy()
    if format == "png":
        found = [np.asarray(Image.open(out / f"0000{k}.png")) for k in range(5)]
    elif format == "npz":
        found = np.load(out / "samples.npz")["samples"][..., 0]
    else:
        with tarfile.open(out / "shard-000000.tar") as tar:
            files = [tar.extractfile(f"0000{k}.png").read() for k in range(5)]
        found = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    assert np.shape(found) == (5, 32, 32)
    assert np.abs(np.array(found, int) - expected[:, 0]).max() <= 1
    record = json.loads((out / "sampling.json").read_text())
    assert record["autoencoder"] == load_config(folder / "run/config.yaml").data.statistics.weights


def test_a_run_is_decoded_without_its_data(folder, flowmatch, tmp_path, monkeypatch):
    def build(*_):
        raise AssertionError("the data are not needed")

    monkeypatch.setattr(Digits, "build", build)
    arguments = ("sample", folder / "run", "--n-samples", 2, "--save-dir", tmp_path / "out")
    code, _, err = flowmatch(*arguments, "--trajectory", "gif")
    assert code == 0, err
    with Image.open(tmp_path / "out/trajectory.gif") as moving:
        assert min(moving.size) >= 32


@pytest.fixture
def net(tmp_path, monkeypatch):
    """Features that are not fitted: the point is of which images they are."""
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path / "cache"))
    architecture = Architecture(shape=(1, 32, 32), outputs=10, widths=(4, 4))
    facts = {"task": "labels", "accuracy": 0.1, "accuracy_on": 10, "data": "none", "seed": 0}
    return FittedNet(ConvNet(architecture), Facts(recipe=3, architecture=architecture, **facts))


def test_samples_are_measured_as_images(folder, flowmatch, tmp_path, net):
    net.save(tmp_path / "net.safetensors")
    code, _, err = flowmatch(
        *("evaluate", folder / "run", "--num-samples", 12, "--json", tmp_path / "found.json"),
        *("--feature-weights", tmp_path / "net.safetensors", "--bspp", 6),
    )
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    protocol = found["protocol"]
    assert protocol["reference"]["shape"] == [1, 32, 32]
    assert protocol["reference"]["hash"] == Digits(image_size=32).build().identity()
    assert protocol["model"]["autoencoder"]
    assert found["rows"][0]["metrics"]["fd_data"] > 0


def test_training_measures_images_on_the_way(folder, net, monkeypatch):
    monkeypatch.setattr("flowmatch.evaluation.preparation.fitted", lambda *_, **__: net)
    result = train(
        folder, "watched", "train.evaluate_every_steps=2", "train.evaluate_samples=10", steps=2
    )
    assert result.evaluation.primary == "fd_data"
    assert "digits train" in result.evaluation.protocol


def test_pictures_of_a_run(folder, flowmatch, tmp_path):
    code, _, err = flowmatch("look", folder / "run", "-o", tmp_path)
    assert code == 0, err
    assert (tmp_path / "nearest.png").is_file()


def test_its_report(folder, flowmatch, tmp_path):
    code, _, err = flowmatch("report", folder / "run")
    assert code == 0, err
    pages = list((folder / "run").rglob("*.html"))
    assert "latents of digits, 2 × 16 × 16" in pages[0].read_text()


def test_solvers_are_tuned_on_latents_unclamped(folder, flowmatch):
    shutil.copytree(folder / "run", folder / "tuned")
    quick = ("--num-samples", 2, "--reference-steps", 20, "--solvers", "heun,unipc")
    code, _, err = flowmatch("tune", folder / "tuned", "--nfe", 4, *quick)
    assert code == 0, err
    assert json.loads((folder / "tuned/tuned.json").read_text())["4"]["clamped"] is False


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("edit", "sdedit", ("--data", "test", "--strength", 0.5)), "the model makes latents"),
        (("likelihood", ()), "a density of latents is none of images"),
    ],
)
def test_what_latents_do_not_allow(folder, flowmatch, tmp_path, command, message):
    *name, options = command
    out = ("-o", tmp_path) if "edit" in name else ()
    code, _, err = flowmatch(*name, folder / "run", *options, *out)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_mistakes_end_in_one_sentence(folder, flowmatch, tmp_path):
    config, weights = folder / "config.yaml", folder / "run/ckpt/step0000004/model.safetensors"
    train = ("train", "-c", config, "-e", tmp_path / "run")
    sampled = ("sample", "-c", config, "--weights", weights, "--n-samples", 1)
    for arguments, message in (
        ((*train, "data.autoencoder=./nowhere"), "there is no folder nowhere"),
        ((*train, "data.images.image_size=64"), "data.images.image_size"),
        ((*sampled, "--save-dir", tmp_path / "out"), "give the run directory"),
    ):
        code, _, err = flowmatch(*arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
