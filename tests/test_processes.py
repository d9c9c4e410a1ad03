"""Real processes: two give what one gives, and no signal at any moment loses a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from flowmatch.config import load_config
from flowmatch.runs import build_trainer
from flowmatch.training import files
from flowmatch.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")


def run(
    *command: object, cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=environment or ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = Checkpoints(run_dir).newest()
    return {
        name + key: value
        for name in ("model", "model_ema")
        for key, value in load_file(newest / f"{name}.safetensors").items()
    }


def test_two_processes_give_the_run_and_the_samples_of_one(tiny, tmp_path):
    options = ("-c", tiny, "train.batch=32", "train.sample_every_steps=3")
    options += ("loss.time={kind: stratified, of: {kind: adaptive}}",)  # learned by both together
    options += ("loss.weighting.kind=uncertainty", "train.augment={kind: geometric}")
    options += ("network.conditions={augment: {kind: vector, dim: 9, when_absent: zero}}",)
    one = run(sys.executable, "train.py", *options, "-e", tmp_path / "one")
    two = run(*TORCHRUN, "train.py", *options, "-e", tmp_path / "two")
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("step 6/6") == 1  # one voice
    assert "2 processes on cpu" in two.stdout
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    arguments = ("sample.py", "-c", tmp_path / "one/config.yaml", "--weights")
    arguments += (tmp_path / "one/ckpt/step0000006/model_ema.safetensors", "--n_samples", 11)
    arguments += ("--bspp", 2, "--sampling_steps", 5, "--save_dir")
    assert run(sys.executable, *arguments, tmp_path / "a").returncode == 0
    assert run(*TORCHRUN, *arguments, tmp_path / "b").returncode == 0
    assert len(list((tmp_path / "a").glob("0*.png"))) == 11
    for path in (tmp_path / "a").glob("*.png"):
        a, b = (np.asarray(Image.open(tmp_path / f / path.name)).astype(int) for f in "ab")
        assert abs(a - b).max() <= 1


def test_two_processes_measure_what_one_measures(trained, fitted_cache, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "FLOWMATCH_CACHE", str(fitted_cache))
    command = ("-m", "flowmatch", "evaluate", trained, "--num-samples", 50, "--repeats", 2)
    command += ("--solvers", "euler:2", "heun:1", "--bspp", 16, "--json")
    one = run(sys.executable, *command, tmp_path / "one.json")
    assert one.returncode == 0, one.stderr
    two = run(*TORCHRUN, *command, tmp_path / "two.json")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("| euler ") == one.stdout.count("| euler ")  # one voice
    ours, theirs = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert ours["protocol"] == theirs["protocol"]
    for a, b in zip(ours["rows"], theirs["rows"], strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-3)
        assert a["nfe"] == b["nfe"]


def test_two_processes_compute_the_reference_of_one(fitted_cache, tmp_path):
    (tmp_path / "data.yaml").write_text("{kind: digits}")
    files = []
    for name, launcher in (("one", (sys.executable,)), ("two", TORCHRUN)):
        files.append(tmp_path / f"{name}.safetensors")
        cache = {**ENVIRONMENT, "FLOWMATCH_CACHE": str(tmp_path / name)}
        shutil.copytree(fitted_cache / "features", tmp_path / name / "features")
        command = (*launcher, "-m", "flowmatch", "reference", tmp_path / "data.yaml", "-o")
        done = run(*command, files[-1], environment=cache)
        assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(f) for f in files)
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-5)


def test_accelerate_launches_both_doors(tiny, tmp_path):
    trained = run(*ACCELERATE, "train.py", "-c", tiny, "-e", tmp_path / "run", "-mp", "bf16")
    assert trained.returncode == 0, trained.stderr
    assert "1 process on cpu, bf16" in trained.stdout
    launcher = (*ACCELERATE, "--mixed_precision", "bf16", "-m", "flowmatch", "train")
    module = run(*launcher, "-e", tmp_path / "run", "--resume")
    assert module.returncode == 0, module.stderr
    assert "resuming at step 6" in module.stdout


def test_a_mistake_under_two_processes_is_said_once(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("")
    both = run(*TORCHRUN, "train.py", "-c", tiny, "-e", tmp_path / "run")
    assert both.returncode != 0
    assert both.stderr.count("exists; continue it with --resume") == 1


def test_the_help_answers_at_once(tmp_path):
    began = time.perf_counter()
    answer = run(sys.executable, "-X", "importtime", "-m", "flowmatch", "-h")
    seconds = time.perf_counter() - began
    assert answer.returncode == 0
    assert "train" in answer.stdout
    loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert not loaded & {"torch", "pydantic", "datasets", "accelerate", "matplotlib", "numpy"}
    assert seconds < 5  # about 0.15 s; the bound is for a busy machine


def start(
    tiny: Path,
    run_dir: Path,
    *overrides: str,
    launcher: Sequence[str] = (sys.executable,),
    stderr: int = subprocess.STDOUT,
) -> subprocess.Popen:
    return subprocess.Popen(
        [*launcher, "train.py", "-c", tiny, "-e", run_dir, *overrides],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def wait_for_line(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the run ended without saying {text!r}")


LONG = ("train.steps=4000", "train.log_every_steps=1", "train.save_every_steps=5")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_polite_signal_saves_and_exits_cleanly(tiny, tmp_path, number):
    process = start(tiny, tmp_path / "run", *LONG)
    wait_for_line(process, "step 3/")
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped at step" in rest
    assert "Traceback" not in rest
    newest = Checkpoints(tmp_path / "run").newest()
    stopped_at = rest.partition("stopped at step ")[2].split()[0].replace(",", "")
    assert newest.name == f"step{int(stopped_at):07d}"


def test_two_processes_stop_together(tiny, tmp_path):
    process = start(tiny, tmp_path / "run", *LONG, launcher=TORCHRUN)
    wait_for_line(process, "step 3/")
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to both
    rest, _ = process.communicate(timeout=90)
    assert "stopped at step" in rest, rest
    assert Checkpoints(tmp_path / "run").newest() is not None


def test_kill_9_leaves_a_run_that_ends_as_if_never_killed(tiny, tmp_path):
    options = ("train.steps=60", "train.save_every_steps=1", "train.log_every_steps=1")
    straight = start(tiny, tmp_path / "straight", *options)
    straight.communicate(timeout=120)
    for kill_at in ("step 7/", "step 23/"):
        arguments = ["-c", str(tiny)] if kill_at == "step 7/" else ["--resume"]
        process = subprocess.Popen(
            [sys.executable, "train.py", *arguments, "-e", tmp_path / "killed", *options],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for_line(process, kill_at)
        process.kill()
        process.wait()
    last = run(sys.executable, "train.py", "-e", tmp_path / "killed", "--resume")
    assert last.returncode == 0, last.stderr
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "straight")
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


class Killed(BaseException):
    """Stands for kill -9: nothing in the program catches it or cleans up after it."""


@pytest.mark.parametrize("moment", range(11))
def test_a_kill_at_any_moment_of_a_save_leaves_the_older_checkpoint(
    tiny, tmp_path, monkeypatch, moment
):
    """Dies just before one of the disk operations of the second save, each in its turn."""
    AcceleratorState._reset_state(reset_partial_state=True)
    calls = {"armed": False, "left": moment}

    def deadly(real):
        def operation(*arguments, **options):
            if calls["armed"]:
                if calls["left"] == 0:
                    raise Killed
                calls["left"] -= 1
            return real(*arguments, **options)

        return operation

    trainer = build_trainer(load_config(tiny), tmp_path / "run")
    save = Checkpoints.save

    def armed_save(self, step, contents, **options):
        calls["armed"] = step == 6
        return save(self, step, contents, **options)

    monkeypatch.setattr(Checkpoints, "save", armed_save)
    for module, name in (
        (files, "save_file"),
        (torch, "save"),
        (os, "fsync"),
        (Path, "rename"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(module, name, deadly(getattr(module, name)))
    died = False
    try:
        trainer.run()
    except Killed:
        died = True
    monkeypatch.undo()
    newest = Checkpoints(tmp_path / "run").newest()
    # 3 writes of tensors, 5 flushes, the rename, and one more flush after it
    assert died == (moment < 10)
    assert newest.name == ("step0000003" if moment < 9 else "step0000006")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert build_trainer(load_config(tiny), tmp_path / "run", resume="latest").run().step == 6
    assert not list((tmp_path / "run/ckpt").glob(".partial*"))
