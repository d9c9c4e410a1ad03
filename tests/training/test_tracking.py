"""What is written about a run: strict JSON, scalars by name, and lines for people."""

import json
import math

import pytest

from flowmatch.look import _loss_curve
from flowmatch.training.tracking import Tracker, read_metrics


@pytest.fixture
def tracker(tmp_path):
    tracker = Tracker(tmp_path, total=2000, start=0, active=True)
    yield tracker
    tracker.close()


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def test_numbers_that_json_cannot_hold_become_null(tracker, tmp_path):
    content = {"a": [1.0, math.nan], "b": {"c": math.inf, "d": 2}, "e": "text", "f": None}
    tracker.record(5, content)

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert record == {"step": 5, "a": [1.0, None], "b": {"c": None, "d": 2}, "e": "text", "f": None}


def test_numbers_against_t_are_scalars_named_by_the_middle_of_their_part(tracker, tmp_path):
    tracker.log(3, {"loss": 0.5, "loss_t": [1.0, None, *[3.0] * 8]})
    tracker.record(3, {"started": {"device": "x"}})
    tracker.close()
    found = scalars(tmp_path)
    assert found["loss"] == [(3, 0.5)]
    names = [f"loss_t/{t}" for t in ("0.05", "0.25", "0.35", "0.45", "0.55", "0.65")]
    assert set(found) == {"loss", *names, "loss_t/0.75", "loss_t/0.85", "loss_t/0.95"}
    assert found["loss_t/0.95"] == [(3, 3.0)]


def test_a_line_says_the_main_numbers_alone(tracker, capsys):
    tracker.log(500, {"images": 3, "loss": 0.25, "lr": 1e-3, "seconds": 9.0, "loss_t": [1.0]})
    tracker.say(500, "evaluation")
    assert capsys.readouterr().out == (
        "step 500/2,000  loss 0.25 lr 0.001\nstep 500/2,000  evaluation\n"
    )


def test_the_newest_kept_record_of_a_name(tmp_path):
    lines = [
        {"step": 0, "started": {}},
        {"step": 2, "seconds": 1.0},
        {"step": 3, "evaluation": {"x": 1}},
        {"step": 4, "seconds": 2.0},
        {"step": 6, "seconds": 3.0},
    ]
    text = "\n".join(json.dumps(r) for r in lines) + '\n{"step": 6, "sec'
    (tmp_path / "metrics.jsonl").write_text(text)
    tracker = Tracker(tmp_path, total=10, start=5, active=True)
    assert tracker.last("seconds") == lines[3]
    assert tracker.last("evaluation") == lines[2]
    assert tracker.last("loss") is None
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == lines[:4]


def test_the_loss_curve_passes_over_other_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "images": 0, "started": {}}\n')
    assert _loss_curve(tmp_path) is None
    with path.open("a") as file:
        for step in (1, 2):
            file.write(json.dumps({"step": step, "images": step, "loss": 1 / step}) + "\n")
            file.write(json.dumps({"step": step, "images": step, "evaluation": {}}) + "\n")
    assert _loss_curve(tmp_path).width > 100


def test_other_processes_write_nothing(tmp_path):
    silent = Tracker(tmp_path, total=10, start=0, active=False)
    silent.log(1, {"loss": 1.0})
    silent.record(1, {"evaluation": {}}, scalars={"x": 1.0})
    silent.say(1, "word")
    silent.close()
    assert silent.last("loss") is None
    assert not list(tmp_path.iterdir())
