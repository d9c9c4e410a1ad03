"""`flowmatch train`: what it writes, and one sentence for every mistake."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from flowmatch.cli.arguments import normalise
from flowmatch.runs import open_run


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_a_run_directory(flowmatch, tiny, tmp_path):
    code, out, _ = flowmatch("train", "-c", tiny, "-e", tmp_path / "run")
    assert code == 0
    assert "1 process on cpu, fp32" in out
    assert "step 6/6" in out
    names = tree(tmp_path / "run")
    files = ("model.safetensors", "model_ema.safetensors", "state.pt", "config.yaml")
    assert {f"ckpt/step0000006/{f}" for f in files} <= names
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "ckpt/step0000003"} <= names
    config, checkpoint = open_run(tmp_path / "run")
    assert checkpoint.name == "step0000006"
    assert config.train.steps == 6


def test_the_default_run_directory_has_the_time_in_its_name(flowmatch, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flowmatch("train", "-c", tiny, "train.steps=1")[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"exp-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", run.name)


def test_overrides_and_precision_reach_the_resolved_config(flowmatch, tiny, tmp_path):
    arguments = ("-mp", "bf16", "train.steps=2", "--train.batch", "8", "--train.seed=5")
    assert flowmatch("train", "-c", tiny, "-e", tmp_path / "run", *arguments)[0] == 0
    train = open_run(tmp_path / "run")[0].train
    assert (train.precision, train.steps, train.batch, train.seed) == ("bf16", 2, 8, 5)


def test_a_warm_up_longer_than_the_run_is_said(flowmatch, tiny, tmp_path):
    for warmup, said in (("warmup_steps: 30", True), ("warmup_steps: 2", False)):
        run = tmp_path / warmup.split()[1]
        schedule = f"train.schedule={{warmup_images: null, {warmup}}}"
        code, out, _ = flowmatch(
            "train", "-c", tiny, "-e", run, "train.steps=3", "train.batch=8", schedule
        )
        assert code == 0
        assert ("30 steps outlasts the run of 3: the rate only reaches 0.1 of lr" in out) == said


def test_resume_needs_no_config_and_says_what_changes(flowmatch, tiny, tmp_path):
    run = tmp_path / "run"
    assert flowmatch("train", "-c", tiny, "-e", run)[0] == 0
    code, out, _ = flowmatch("train", "-e", run, "--resume", "train.steps=8")
    assert code == 0
    assert "changed: train.steps was 6, is 8" in out
    assert "resuming at step 6" in out
    assert (run / "ckpt/step0000008").is_dir()
    code, out, _ = flowmatch("train", "-e", run, "-r", run / "ckpt/step0000003", "train.steps=4")
    assert code == 0
    assert "resuming at step 3" in out


def test_a_finished_run_resumes_to_nothing_new(flowmatch, tiny, tmp_path):
    run = tmp_path / "run"
    flowmatch("train", "-c", tiny, "-e", run)
    before = tree(run / "ckpt")
    code, out, _ = flowmatch("train", "-e", run, "--resume")
    assert code == 0
    assert "resuming at step 6" in out
    assert tree(run / "ckpt") == before


def test_a_run_killed_before_its_first_checkpoint_starts_over(flowmatch, tiny, tmp_path):
    run = tmp_path / "run"
    flowmatch("train", "-c", tiny, "-e", run)
    shutil.rmtree(run / "ckpt")
    code, out, _ = flowmatch("train", "-e", run, "--resume")
    assert code == 0
    assert "resuming at step 0" in out
    assert (run / "ckpt/step0000006").is_dir()


def test_overwrite_replaces_a_run_and_nothing_else(flowmatch, tiny, tmp_path):
    run = tmp_path / "run"
    flowmatch("train", "-c", tiny, "-e", run)
    code, _, err = flowmatch("train", "-c", tiny, "-e", run)
    assert code == 2
    assert "--resume" in err
    assert "--overwrite" in err
    assert flowmatch("train", "-c", tiny, "-e", run, "-cd", "train.steps=1")[0] == 0
    assert [p.name for p in (run / "ckpt").iterdir()] == ["step0000001"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    code, _, err = flowmatch("train", "-c", tiny, "-e", tmp_path / "thesis", "--overwrite")
    assert code == 2
    assert "no run directory" in err
    assert (tmp_path / "thesis/chapter.tex").exists()


def folder_config(tmp_path: Path, images: Path, size: int = 8) -> Path:
    path = tmp_path / "folder.yaml"
    path.write_text(
        f"{{data: {{kind: folder, root: {images}, image_size: {size}}},"
        " network: {kind: unet, channels: 8, multipliers: [1], attention_resolutions: []},"
        " train: {steps: 1, batch: 2}}"
    )
    return path


def make_images(folder: Path, count: int = 4, size: int = 16) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.effect_noise((size, size), 50).convert("RGB").save(folder / f"{i}.png")
    return folder


MISTAKES = {
    "mistyped key": (["train.stesp=4"], ["train.stesp: unknown key; did you mean steps?"]),
    "two mistakes": (
        ["train.stesp=4", "network.kind=unett"],
        ["2 mistakes", "train.stesp", "network.kind: unknown kind 'unett'; did you mean unet?"],
    ),
    "nested key": (["loss.time.mena=1"], ["loss.time.mena: unknown key; did you mean mean?"]),
    "key of elsewhere": (["batch=4"], ["batch: unknown key; it belongs to train.batch"]),
    "key of another kind": (
        ["data.root=a"],
        ["data.root: unknown key; known of kind digits: image_size"],
    ),
    "true for a number": (["train.batch=true"], ["train.batch: is a number, got true"]),
    "times the wrong way round": (
        ["loss.time={kind: adaptive, of: {kind: stratified}}"],
        ["loss.time.of: stratified cannot stand here; from the outside in"],
    ),
    "mistyped name": (
        ["predict=velocty"],
        ["predict: unknown name 'velocty'; did you mean velocity?", "x1, x0, score"],
    ),
    "a name as a mapping": (["predict={kind: x1}"], ["a bare name, predict=x1"]),
    "wrong type": (["train.steps=many"], ["train.steps: input should be a valid integer"]),
    "wrong value": (["train.steps=0"], ["train.steps must be at least 1, got 0"]),
    "solver": (["sample.solver.kind=huen"], ["did you mean heun?", "euler, midpoint, heun"]),
    "no value": (["train.steps"], ["cannot read 'train.steps'; an override is key.path=value"]),
    "classes": (["network.num_classes=5"], ["num_classes is 5", "has 10 classes"]),
    "attention": (["network.attention_resolutions=[16]"], ["heights [8, 4]"]),
    "batch": (["train.accumulate=5"], ["train.batch=16 cannot be dealt"]),
    "list for a mapping": (["data=[1]"], ["tiny.yaml"]),
    "not a number": (["train.ema.halflife_images=.nan"], ["train.ema.halflife_images"]),
    "infinite": (["loss.time.std=.inf"], ["loss.time.std: input should be a finite number"]),
    "a giant network": (["network.channels=1000000"], ["GiB of memory"]),
    "an absurd network": (["network.channels=1000000000000000000000"], ["cannot be built"]),
    "a giant batch": (["train.batch=100000000000"], ["train.batch=100000000000", "GiB"]),
    "momentum": (["train.optimizer.betas=[1,2]"], ["betas lie in [0, 1)"]),
    "fp16 on a CPU": (["train.precision=fp16"], ["fp16 needs a CUDA device"]),
}


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_message_and_writes_nothing(
    flowmatch, tiny, tmp_path, overrides, expected
):
    before = tree(tmp_path)
    code, _, err = flowmatch("train", "-c", tiny, "-e", tmp_path / "run", *overrides)
    assert code == 2, err
    assert err.startswith("flowmatch: ")
    assert "Traceback" not in err
    for part in expected:
        assert part in err
    assert tree(tmp_path) == before


def test_a_config_that_is_not_there(flowmatch, tiny, tmp_path):
    code, _, err = flowmatch("train", "-c", tmp_path / "tyni.yaml", "-e", tmp_path / "run")
    assert code == 2
    assert "there is no config file" in err
    assert "did you mean tiny.yaml?" in err


def test_places_that_cannot_be(flowmatch, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    for arguments, expected in (
        (("-c", tmp_path, "-e", tmp_path / "run"), "is no file"),
        (("-c", tiny, "-e", tmp_path / "file"), "is a file"),
        (("-c", tiny, "-e", tmp_path / "file/run"), "cannot write to"),
    ):
        code, _, err = flowmatch("train", *arguments)
        assert code == 2
        assert expected in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["3", "a: [1, 2", "just a word", "- a\n- b", ""])
def test_a_config_that_is_no_config(flowmatch, tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    code, _, err = flowmatch("train", "-c", tmp_path / "bad.yaml", "-e", tmp_path / "run")
    assert code == 2
    assert "bad.yaml" in err
    assert not (tmp_path / "run").exists()


def test_missing_parts_are_named(flowmatch, tmp_path):
    (tmp_path / "half.yaml").write_text("data: {kind: digits}\nnetwork: {channels: 8}\n")
    code, _, err = flowmatch("train", "-c", tmp_path / "half.yaml")
    assert code == 2
    assert "network: has no kind" in err
    assert "train: is missing" in err


def test_a_foreign_config_is_recognised(flowmatch, tmp_path):
    (tmp_path / "seed.yaml").write_text("model: {target: models.UNetModel, params: {}}\n")
    code, _, err = flowmatch("train", "-c", tmp_path / "seed.yaml")
    assert code == 2
    assert "flowmatch import" in err


def test_image_folders_that_cannot_be_used(flowmatch, tmp_path):
    images = make_images(tmp_path / "images")
    run = tmp_path / "run"

    def attempt(size: int = 8) -> tuple[int, str]:
        code, _, err = flowmatch("train", "-c", folder_config(tmp_path, images, size), "-e", run)
        return code, err

    assert attempt()[0] == 0
    shutil.rmtree(run)
    code, err = attempt(size=32)  # larger than the images
    assert code == 2
    assert "16x16" in err
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    (images / "2.png").write_bytes(b"")
    code, err = attempt()
    assert code == 2
    assert "1.png" in err
    assert "2.png" in err
    for path in images.iterdir():
        path.unlink()
    code, err = attempt()
    assert code == 2
    assert "holds no images" in err
    images.rmdir()
    code, err = attempt()
    assert code == 2
    assert "not a folder" in err
    assert not run.exists()


def test_no_space_is_found_before_anything_is_written(flowmatch, tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = flowmatch("train", "-c", tiny, "-e", tmp_path / "run")
    assert code == 2
    assert "no space left" in err
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_loses_nothing(flowmatch, tiny, tmp_path, monkeypatch):
    def full(path: Path, write: object) -> None:
        if "step0000006" in str(path):
            raise OSError(28, "No space left on device", str(path))
        real(path, write)

    from flowmatch.training import contents, files

    real = files.write_durably
    for module in (contents, files):
        monkeypatch.setattr(module, "write_durably", full)
    code, _, err = flowmatch("train", "-c", tiny, "-e", tmp_path / "run")
    assert code == 1
    assert "no space left on the disk" in err
    assert [p.name for p in (tmp_path / "run/ckpt").glob("step*")] == ["step0000003"]
    monkeypatch.undo()
    assert flowmatch("train", "-e", tmp_path / "run", "--resume")[0] == 0
    assert (tmp_path / "run/ckpt/step0000006").is_dir()


def test_a_loss_that_is_not_finite_ends_the_run(flowmatch, tiny, tmp_path):
    code, _, err = flowmatch(
        *("train", "-c", tiny, "-e", tmp_path / "run"),
        *("train.lr=1e30", "train.schedule.warmup_steps=0", "train.save_every_steps=1"),
    )
    assert code == 1
    assert re.search(r"became NaN or infinite at step \d", err)
    assert "Traceback" not in err


def test_going_on_from_an_older_checkpoint_sets_the_newer_ones_aside(flowmatch, tiny, tmp_path):
    run = tmp_path / "run"
    flowmatch("train", "-c", tiny, "-e", run)
    flowmatch("train", "-e", run, "-r", run / "ckpt/step0000003", "train.steps=4")
    names = sorted(p.name for p in (run / "ckpt").iterdir())
    assert names == ["step0000003", "step0000004", "superseded-step0000006"]
    assert "resuming at step 4" in flowmatch("train", "-e", run, "--resume", "train.steps=5")[1]


@pytest.mark.parametrize("content", [[1], {"step": 6}])
def test_a_state_of_another_kind_is_passed_over(flowmatch, tiny, tmp_path, content):
    run = tmp_path / "run"
    flowmatch("train", "-c", tiny, "-e", run)
    torch.save(content, run / "ckpt/step0000006/state.pt")
    code, out, _ = flowmatch("train", "-e", run, "--resume")
    assert code == 0
    assert "resuming at step 3" in out


RESUME_MISTAKES = {
    "no run": (["-e", "{}/nothing", "--resume"], "there is no run to resume"),
    "no directory": (["--resume"], "needs the run directory"),
    "best": (["-e", "{}/run", "--resume", "best"], "no best checkpoint"),
    "no such checkpoint": (
        ["-e", "{}/run", "-r", "{}/run/ckpt/step9"],
        "there is no checkpoint folder",
    ),
    "another network": (
        ["-e", "{}/run", "--resume", "network.channels=16"],
        "leave out network.channels=16 to keep",
    ),
    "both": (["-e", "{}/run", "--resume", "--overwrite"], "choose one"),
    "no config": (["-e", "{}/run"], "needs a config"),
}


@pytest.mark.parametrize(
    ("arguments", "expected"), RESUME_MISTAKES.values(), ids=RESUME_MISTAKES.keys()
)
def test_resume_mistakes(flowmatch, trained, arguments, expected):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    code, _, err = flowmatch("train", *(a.format(trained.parent) for a in arguments))
    assert code == 2
    assert expected in err
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


def test_a_run_whose_checkpoints_are_all_damaged_is_not_restarted(flowmatch, tiny, tmp_path):
    run = tmp_path / "run"
    flowmatch("train", "-c", tiny, "-e", run)
    for path in run.glob("ckpt/*/state.pt"):
        os.truncate(path, 100)
    code, _, err = flowmatch("train", "-e", run, "--resume")
    assert code == 2
    assert "no checkpoint can be read" in err
    assert "state.pt" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resume"], ["--resume", "latest"]),
        (["-r", "best", "-e", "x"], ["-r", "best", "-e", "x"]),
        (["--resume", "train.steps=3"], ["--resume", "latest", "train.steps=3"]),
        (["--resume", "-e", "x"], ["--resume", "latest", "-e", "x"]),
        (["--train.steps", "5", "-e", "x"], ["train.steps=5", "-e", "x"]),
        (["--train.lr=1e-3"], ["train.lr=1e-3"]),
        (["--weights", "a.b", "--seed", "3"], ["--weights", "a.b", "--seed", "3"]),
    ],
)
def test_the_habits_of_other_command_lines(words, expected):
    assert normalise(words) == expected
