"""What is read of a run directory, and what is refused or named."""

import json
import math

import pytest

from flowmatch.report.cost import images_seen, training_seconds
from flowmatch.report.reading import Row, finite, number, numbers, read_run, spread_out


def test_a_run_is_read(full):
    run = read_run(full)
    assert run.name == "full"
    assert run.shape == (1, 8, 8)
    assert run.checkpoint == (6, 96)
    assert list(run.samples) == [1, 2, 3, 4, 5]
    assert run.records[-1]["step"] == 6  # the torn last line is left out
    (evaluation,) = run.evaluations.values()
    assert evaluation.rows[3].name == "heun, 50 steps"
    assert evaluation.anchors["held-out data"].count == 360


def test_the_parameters_are_the_network_s(full):
    from safetensors.torch import load_file

    held = load_file(full / "ckpt/step0000006/model.safetensors")
    assert read_run(full).parameters == sum(t.numel() for t in held.values())


def test_what_is_no_run_is_refused(full, tmp_path):
    with pytest.raises(ValueError, match=r"is no run directory: it has no config\.yaml"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is a checkpoint; report on its run, .*full$"):
        read_run(full / "ckpt/step0000006")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b'{"rows": [', "Expecting value"),
        (b"\xff\xfe\x00", "can't decode"),
        (b"[]", "its content"),
        (b'{"protocol": {}}', "rows"),
        (b'{"rows": [{"solver": "heun"}]}', "rows.0.metrics"),
        (b'{"rows": [{"metrics": {"fd": "low"}}]}', "rows.0.metrics.fd"),
    ],
)
def test_an_unreadable_evaluation_is_named(full, content, why):
    path = full / "evaluation/other.json"
    path.write_bytes(content)
    run = read_run(full)
    assert why in run.unreadable[path]
    assert len(run.evaluations) == 1


def test_unknown_keys_and_nulls_do_no_harm(full):
    row = {"metrics": {"fd": None, "kd": math.nan}, "solver": "dopri5", "steps": None, "new": 1}
    path = full / "evaluation/other.json"
    stored = {"metrics": {}, "solver": None}
    path.write_text(json.dumps({"rows": [row, stored], "future": {}}))
    run = read_run(full)
    assert [row.name for row in run.evaluations[path].rows] == ["dopri5", "stored"]
    assert not run.unreadable


def test_rows_that_differ_have_names_that_differ():
    rows = [
        Row({}, "heun", 5, time_grid="uniform", safe_end=True),
        Row({}, "heun", 5, time_grid="uniform", safe_end=False),
        Row({}, "heun", 5, time_grid="edm:7,0.002,80", safe_end=True),
        Row({}, "heun", 2, time_grid="0,0.4,1", safe_end=True),
        Row({}, "dopri5", time_grid="adaptive", options={"rtol": 1e-5, "max_steps": 100}),
    ]
    assert [row.name for row in rows] == [
        "heun, 5 steps",
        "heun (bare end), 5 steps",
        "heun (edm:7,0.002,80), 5 steps",
        "heun (own times), 2 steps",
        "dopri5 (rtol 1e-05)",
    ]


def test_numbers_are_finite_or_none():
    record = {"a": 1, "b": math.nan, "c": None, "d": True, "e": {"f": 2.5}, "g": [1, None, "x"]}
    assert [number(record, k) for k in "abcdz"] == [1.0, None, None, None, None]
    assert number(record, "e", "f") == 2.5
    assert number(record, "a", "f") is None
    assert numbers(record, "g") == [1.0, None, None]
    assert numbers(record, "a") == []
    assert finite(math.inf) is None


def test_first_middle_and_last():
    assert spread_out([1, 2]) == [1, 2]
    assert spread_out([1, 2, 3, 4, 5]) == [1, 3, 5]
    assert spread_out([]) == []


def test_training_time_is_logged_or_follows_from_the_rates(full):
    run = read_run(full)
    assert images_seen(run) == 96
    assert training_seconds(run) == 12
    path = full / "metrics.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    path.write_text("\n".join(json.dumps({**r, "seconds": None}) for r in kept))
    assert training_seconds(read_run(full)) == pytest.approx(96 / 8)


def test_the_command_that_fills_a_gap_suits_the_run(bare, full):
    change = "train.sample_every_steps=1"
    assert read_run(bare).train_command(change) == (
        f"flowmatch train -e '{bare}' --resume train.sample_every_steps=1"
    )
    assert read_run(full).train_command() == (  # finished: resuming would change nothing
        f"flowmatch train -c {full}/config.yaml -e {full}-again"
    )
