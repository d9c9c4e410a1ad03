"""How long the device waits for data, and when somebody is told."""

import json
import time

import pytest
import torch
from accelerate.state import AcceleratorState

from flowmatch.config import load_config
from flowmatch.runs import build_trainer
from flowmatch.training.tracking import Tracker, read_metrics
from flowmatch.training.waiting import DataClock, WaitWatch


def test_on_a_cpu_the_clock_counts_what_it_runs_over(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = DataClock(torch.device("cpu"))
    for seconds in (1.0, 2.5):
        with clock.running():
            now[0] += seconds
        now[0] += 100
    assert clock.read() == 3.5
    assert clock.read() == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_waiting_counts_only_where_the_gpu_is_idle():
    device = torch.device("cuda")
    clock, x = DataClock(device), torch.randn(8192, 8192, device=device)

    def step(work: int) -> float:
        for _ in range(work):
            _ = x @ x
        with clock.running():
            time.sleep(0.05)
        return clock.read()

    step(1)
    assert step(0) == pytest.approx(0.05, rel=0.2)
    assert step(200) < 0.005  # it computes for longer than the host waits


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 4),
        ([0.9, 0.05, 0.5, 0.5, 0.5, 0.5, 0.5], 6),
        ([0.1, 0.1, 0.1, 0.1, 0.1], None),
        ([0.5, 0.5, 0.0, 0.5, 0.5, 0.0], None),
    ],
)
def test_it_is_told_once_after_some_lines_and_seconds_above_a_tenth(shares, told):
    """Lines are 3 seconds apart, of which three and 10 seconds are needed."""
    watch = WaitWatch()
    found = [watch.look(share, 3.0 * k) for k, share in enumerate(shares, 1)]
    expected = [None] * len(shares)
    if told is not None:
        assert found[told - 1].startswith("50% of the time the device waits for data; raise train")
        expected[told - 1] = found[told - 1]
    assert found == expected


def test_the_advice_is_a_line_of_its_own(tmp_path, capsys):
    tracker = Tracker(tmp_path, total=9, start=0, active=True)
    for step in range(1, 7):
        tracker.log(step, {"images": step, "data_wait": 0.4, "seconds": 5.0 * step})
    tracker.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert sum("raise train.workers" in line for line in lines) == 1


def test_a_run_says_its_share_of_waiting(tiny, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_trainer(load_config(tiny, ["train.steps=4"]), tmp_path / "run")
    real = trainer.dataset.raw

    def slow(*arguments):
        time.sleep(0.1)
        return real(*arguments)

    monkeypatch.setattr(trainer.dataset, "raw", slow)
    trainer.run()
    lines = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in r]
    assert len(lines) == 2
    for line in lines:
        waited = line["data_wait"] * 2 * 16 / line["images_per_second"]
        assert 0.2 <= waited < 2 * 16 / line["images_per_second"]
    assert json.dumps(lines)
