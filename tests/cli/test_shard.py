"""`flowmatch shard`, and training on what it makes: killed and resumed, by one process or two."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from made_data import make_cifar10, make_folder, picture, save
from test_processes import ENVIRONMENT, ROOT, TORCHRUN, run, wait_for_line, weights

CONFIG = """
data: {{kind: shards, root: {root}, image_size: 16, memory_gib: 0, flip: true,
        stream: {{lanes: 4, buffer: 6}}}}
network: {{kind: unet, channels: 8, multipliers: [1], attention_resolutions: [], num_classes: 3}}
train: {{steps: 9, batch: 8, workers: 2, log_every_steps: 1, save_every_steps: 2}}
"""


@pytest.fixture
def shards(flowmatch, tmp_path) -> Path:
    for k in range(50):
        save(tmp_path / f"images/class {k % 3}/{k}.png", picture(16, 16, key=k))
    code, _, err = flowmatch("shard", tmp_path / "images", "-o", tmp_path / "shards")
    assert code == 0, err
    return tmp_path / "shards"


@pytest.fixture
def config(shards, tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(root=shards))
    return path


def test_a_folder_and_its_test_images(flowmatch, tmp_path):
    make_folder(tmp_path / "images")
    options = ("--shard-size", 3, "--workers", 2)
    code, out, err = flowmatch("shard", tmp_path / "images", "-o", tmp_path / "out", *options)
    assert code == 0, err
    assert f"8 images of 2 classes in 3 shards: {tmp_path}/out/train" in out
    assert f"4 images of 2 classes in 2 shards: {tmp_path}/out/test" in out
    assert f"data={{kind: shards, root: {tmp_path}/out, image_size: ...}}" in out
    assert "train images 8/8" in out
    code, out, _ = flowmatch(
        "shard", tmp_path / "images", "-o", tmp_path / "bare", *options, "--no-labels"
    )
    assert code == 0
    assert "8 images in 3 shards" in out


def test_the_folder_of_the_images_is_no_place_for_shards(flowmatch, tmp_path):
    make_folder(tmp_path / "images")
    code, _, err = flowmatch("shard", tmp_path / "images", "-o", tmp_path / "images/out")
    assert code == 2
    assert f"lies inside {tmp_path}/images; choose a folder for the shards outside" in err
    assert not (tmp_path / "images/out").exists()


def test_a_data_config(flowmatch, tmp_path):
    make_cifar10(tmp_path / "data")
    (tmp_path / "data.yaml").write_text(f"{{kind: cifar10, root: {tmp_path / 'data'}}}")
    code, out, err = flowmatch("shard", tmp_path / "data.yaml", "-o", tmp_path / "out")
    assert code == 0, err
    assert "20 images of 10 classes in 1 shard:" in out
    assert "10 images of 10 classes in 1 shard:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/nowhere"], "is neither a folder of images nor a data config (.yaml)"),
        (["{0}/empty"], "holds no images"),
        (["{0}/toy.yaml"], "shards hold images, and"),
        (["{0}/wrong.yaml"], "unknown kind 'fodler'; did you mean folder?"),
        (["{0}/images", "--shard-size", "0"], "--shard-size and --workers are at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_sentence(flowmatch, tmp_path, arguments, message):
    make_folder(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    (tmp_path / "toy.yaml").write_text("{kind: toy, name: moons}")
    (tmp_path / "wrong.yaml").write_text("{kind: fodler}")
    words = [word.format(tmp_path) for word in arguments]
    code, _, err = flowmatch("shard", *words, "-o", tmp_path / "out")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_killed_and_resumed_equals_one_that_is_not(flowmatch, config, tmp_path):
    """In the second epoch of 50 samples, by a stream of two workers."""
    code, out, err = flowmatch("train", "-c", config, "-e", tmp_path / "straight")
    assert code == 0, err
    assert "data_wait" in out
    process = subprocess.Popen(
        [sys.executable, "train.py", "-c", str(config), "-e", str(tmp_path / "killed")],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_line(process, "step 7/")  # before it saves 6, it has saved 4
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    code, out, err = flowmatch("train", "-e", tmp_path / "killed", "--resume")
    assert code == 0, err
    assert re.search("resuming at step [468]", out)
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "straight")
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_two_processes_in_parts_give_the_run_of_one(flowmatch, config, tmp_path):
    code, _, err = flowmatch("train", "-c", config, "-e", tmp_path / "one", "train.steps=3")
    assert code == 0, err
    options = ("train.steps=3", "train.accumulate=2")
    two = run(*TORCHRUN, "train.py", "-c", config, "-e", tmp_path / "two", *options)
    assert two.returncode == 0, two.stderr
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch=6", "train.batch=6 is no multiple of data.stream.lanes=4"),
        ("data.stream.lanes=51", "train.batch=8 is no multiple of data.stream.lanes=51"),
        ("data.stream.lane=2", "did you mean lanes?"),
        ("network.num_classes=4", "has 3 classes"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    flowmatch, config, tmp_path, override, message
):
    code, _, err = flowmatch("train", "-c", config, "-e", tmp_path / "run", override)
    assert code == 2, err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_shard_that_breaks_in_the_training_ends_it_in_one_sentence(
    flowmatch, shards, config, tmp_path
):
    """Its bytes, not its size: the image is named."""
    (path,) = shards.glob("*.tar")
    whole = path.read_bytes()
    at = whole.index(b"\x89PNG", 4096)
    path.write_bytes(whole[:at] + b"\0" * 8 + whole[at + 8 :])
    code, _, err = flowmatch("train", "-c", config, "-e", tmp_path / "run")
    assert code == 2
    assert "is unreadable (not an image); replace or delete it" in err
    assert "Traceback" not in err


def test_a_streamed_run_is_sampled_and_evaluated(flowmatch, config, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path / "cache"))
    short = ("train.steps=2", "train.sample_every_steps=2", "train.samples=4")
    code, _, err = flowmatch("train", "-c", config, "-e", tmp_path / "run", *short)
    assert code == 0, err
    assert Image.open(tmp_path / "run/samples/step0000002.png").size[0] > 16
    command = ("sample", tmp_path / "run", "--n_samples", 4, "--save_dir", tmp_path / "out")
    assert flowmatch(*command, "--sampling_steps", 2)[0] == 0
