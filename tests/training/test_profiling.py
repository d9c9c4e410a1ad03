"""A profile says where the time of a step goes, and changes nothing in the run."""

import json
import time

import pytest
import torch
from test_trainer import assert_same_bits, train

from flowmatch.config import load_config
from flowmatch.runs import build_flow
from flowmatch.training.profiling import Clock, lines_of
from flowmatch.training.settings import PROFILED_STEPS as STEPS
from flowmatch.training.settings import TrainConfig
from flowmatch.training.tracking import read_metrics
from test_processes import TORCHRUN, run

OPTIONS = (f"train.steps={STEPS + 1}", "train.save_every_steps=null", "train.batch=8")


def test_a_run_that_is_profiled(tiny, tmp_path, capsys):
    _, plain = train(tiny, tmp_path / "plain", *OPTIONS)
    capsys.readouterr()
    _, profiled = train(tiny, tmp_path / "run", *OPTIONS, "train.profile=true")
    assert_same_bits(plain.checkpoint, profiled.checkpoint)
    (record,) = (r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "profile" in r)
    found = record["profile"]
    assert record["step"] == STEPS
    phases = found["phases"]
    assert list(phases) == ["data", "forward", "backward", "optimizer", "ema", "other"]
    assert all(seconds > 0 for seconds in phases.values())
    assert sum(phases.values()) == pytest.approx(found["clocked_step_seconds"], rel=1e-6)
    assert found["images_per_second"] == pytest.approx(8 / found["step_seconds"])
    assert 0 < found["utilisation"] < 1.5
    assert found["idle"] is None  # there is no GPU
    assert found["communication_bytes"] == 0
    trace = json.loads((tmp_path / "run/profile/trace-0.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"forward", "backward", "optimizer", "ema", "aten::convolution"} <= names
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in phases)
    assert "ui.perfetto.dev" in said


@pytest.mark.slow
def test_processes_say_what_they_exchange(tiny, tmp_path):
    words = ("train.py", "-c", tiny, *OPTIONS, "train.profile=true", "-e", tmp_path / "run")
    done = run(*TORCHRUN, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("of gradients takes") == 1  # one voice
    (record,) = (r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "profile" in r)
    flow = build_flow(load_config(tmp_path / "run/config.yaml"))
    gradients = sum(4 * p.numel() for p in flow.parameters())
    assert record["profile"]["communication_bytes"] == gradients
    assert record["profile"]["communication_seconds"] > 0
    names = {p.name for p in (tmp_path / "run/profile").iterdir()}
    assert names == {
        "trace-0.json",
        "trace-1.json",
    }


def test_a_clock_that_is_off_counts_nothing_and_one_that_is_on_sums_up():
    clock = Clock(torch.device("cpu"))
    with clock.phase("forward"):
        pass
    assert clock.seconds == {}
    clock.on = True
    for _ in range(2):
        with clock.phase("forward"):
            time.sleep(0.01)
    assert 0.02 <= clock.seconds["forward"] < 0.5


def test_a_run_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match=r"train\.profile takes 33 steps, but the run has 10"):
        TrainConfig(steps=10, profile=True)


def test_what_is_left_of_a_run_is_too_short(tiny, tmp_path):
    train(tiny, tmp_path / "run", "train.steps=6")
    with pytest.raises(ValueError, match=r"train\.profile takes 33 steps, but 30 are left"):
        train(tiny, tmp_path / "run", "train.steps=36", "train.profile=true", resume="latest")


def test_the_lines_of_a_gpu():
    record = {
        "step_seconds": 0.1,
        "clocked_step_seconds": 0.2,
        "images_per_second": 640.0,
        "phases": {"forward": 0.05, "other": 0.15},
        "communication_seconds": 0.01,
        "communication_bytes": 2**20,
        "idle": 0.25,
        "utilisation": 0.4,
        "trace": "t.json",
    }
    lines = lines_of(record)
    assert lines[0] == "a step takes 100.0 ms: 640 images/s, 40.0% of the device's peak"
    assert "25.0%" in lines[1]
    assert "1.0 MiB" in lines[3]
    assert "idle 25.0%" in lines[4]
