"""Learning-rate factors against their formulas."""

from functools import partial
from typing import get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from flowmatch.training.schedules import (
    Constant,
    CosineDecay,
    InverseSqrt,
    LinearDecay,
    ScheduleConfig,
)
from flowmatch.training.settings import TrainConfig

KINDS = {
    "constant": Constant,
    "linear": LinearDecay,
    "cosine": CosineDecay,
    "inverse_sqrt": partial(InverseSqrt, reference_steps=30),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def factors(schedule, total=100, batch=1):
    return [schedule.factor(i, total_steps=total, batch=batch) for i in range(total)]


def test_every_schedule_of_the_union_is_tested_here():
    assert {member.kind for member in get_args(get_args(ScheduleConfig)[0])} == {*KINDS}


@each_kind
def test_the_warm_up_is_linear_and_its_first_step_is_not_lost(kind):
    rates = factors(kind(warmup_steps=10))
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)], rel=1e-15)
    assert all(r >= 0 for r in rates)
    assert factors(kind(warmup_steps=0)) == factors(kind()) == factors(kind(warmup_images=0))


@pytest.mark.parametrize("warmup", [0, 1, 10, 100])
def test_the_curves_in_closed_form(warmup):
    t = np.arange(1, 101)
    ramp = np.minimum(t / warmup, 1) if warmup else np.ones(100)
    angle = np.pi / 2 * (p := np.clip((t - warmup) / max(100 - warmup, 1), 0, 1))
    for schedule, expected in (
        (Constant(warmup_steps=warmup), ramp),
        (LinearDecay(warmup_steps=warmup), ramp * (1 - p)),
        (LinearDecay(warmup_steps=warmup, final=0.2), ramp * (1 - 0.8 * p)),
        (CosineDecay(warmup_steps=warmup), ramp * np.cos(angle) ** 2),
        (CosineDecay(warmup_steps=warmup, final=0.3), ramp * (1 - 0.7 * np.sin(angle) ** 2)),
        (
            InverseSqrt(warmup_steps=warmup, reference_steps=7),
            ramp * np.minimum(np.sqrt(7 / t), 1),
        ),
    ):
        assert factors(schedule) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_where_the_curves_start_and_end():
    assert factors(LinearDecay())[-1] == factors(LinearDecay(warmup_steps=9))[-1] == 0
    assert factors(CosineDecay())[-1] == pytest.approx(0, abs=1e-15)
    assert factors(CosineDecay(final=0.1))[-1] == pytest.approx(0.1)
    rates = factors(InverseSqrt(reference_steps=10))
    assert rates[:10] == [1] * 10
    assert (rates[39], rates[89]) == (0.5, pytest.approx(1 / 3))
    assert InverseSqrt(reference_steps=10).factor(39, total_steps=10**9, batch=1) == 0.5


@each_kind
def test_in_images_the_factor_is_one_of_the_images_seen_whatever_the_batch(kind):
    options = {"warmup_images": 1200}
    if kind is KINDS["inverse_sqrt"]:
        kind, options = InverseSqrt, {**options, "reference_images": 3000}
    schedule = kind(**options)
    # all divide 12 000; neither 480 nor 800 divides the warm-up or the reference
    rates = {
        batch: {
            (i + 1) * batch: schedule.factor(i, total_steps=12_000 // batch, batch=batch)
            for i in range(12_000 // batch)
        }
        for batch in (1, 4, 60, 200, 480, 800)
    }
    for batch, mine in rates.items():
        for images, rate in mine.items():
            assert rate == pytest.approx(rates[1][images], rel=1e-9, abs=1e-15), (batch, images)
    assert rates[60][600] == pytest.approx(0.5)


def test_a_run_in_images_has_the_same_rates_whatever_the_batch():
    for schedule in (
        CosineDecay(warmup_images=1000),
        InverseSqrt(warmup_images=1000, reference_images=2000),
    ):
        small, large = (
            TrainConfig(images=16_000, batch=batch, lr=3e-4, schedule=schedule)
            for batch in (100, 500)
        )
        for n in range(1, 33):
            assert small.lr_at(5 * n - 1) == pytest.approx(large.lr_at(n - 1), abs=1e-18)


def test_a_rate_for_a_batch_follows_the_root_of_another_batch():
    def peak(batch: int) -> float:
        config = TrainConfig(steps=10, batch=batch, lr=1e-3, lr_for_batch=512)
        assert config.lr_at(0) == config.peak_lr  # a constant schedule
        return config.peak_lr

    assert peak(512) == 1e-3
    assert peak(2048) == pytest.approx(2e-3)
    assert peak(128) == pytest.approx(5e-4)
    with pytest.raises(ValueError, match="lr_for_batch must be at least 1"):
        TrainConfig(steps=1, lr_for_batch=0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Constant, {"warmup_steps": 1, "warmup_images": 1}, "not both"),
        (Constant, {"warmup_steps": -1}, "negative"),
        (InverseSqrt, {"warmup_images": -1, "reference_steps": 3}, "negative"),
        (LinearDecay, {"final": 1.5}, r"final is a factor in \[0, 1\], got 1\.5"),
        (CosineDecay, {"final": -0.1}, r"final is a factor"),
        (InverseSqrt, {}, "exactly one"),
        (InverseSqrt, {"reference_steps": 1, "reference_images": 1}, "exactly one"),
        (InverseSqrt, {"reference_images": 0}, "at least 1, got 0"),
    ],
)
def test_impossible_schedules_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_schedules_are_read_from_configs_by_their_kind():
    adapter = TypeAdapter(ScheduleConfig)
    node = {"kind": "inverse_sqrt", "reference_images": 70_000, "warmup_images": 10}
    schedule = adapter.validate_python(node)
    assert schedule == InverseSqrt(reference_images=70_000, warmup_images=10)
    assert adapter.validate_json(adapter.dump_json(schedule)) == schedule
    with pytest.raises(ValidationError, match=r"'constant', 'linear', 'cosine', 'inverse_sqrt'"):
        adapter.validate_python({"kind": "inverse"})
    with pytest.raises(ValidationError, match="refrence_steps"):
        adapter.validate_python({"kind": "inverse_sqrt", "refrence_steps": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"steps": 1, "images": 1}, "exactly one"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 5, "batch": 0}, r"train\.batch"),
        ({"steps": 5, "lr": -1.0}, r"train\.lr"),
        ({"steps": 5, "lr": float("nan")}, r"train\.lr"),
        ({"steps": 5, "save_every_steps": 1, "save_every_images": 1}, "not both"),
        ({"steps": 5, "workers": -1}, "negative"),
        ({"steps": 5, "evaluate_every_steps": 1, "evaluate_every_images": 1}, "not both"),
        ({"steps": 5, "evaluate_every_images": 0}, r"train\.evaluate_every_images"),
        ({"steps": 5, "evaluate_samples": 9}, r"train\.evaluate_samples"),
    ],
)
def test_impossible_training_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_lengths_in_images_become_steps():
    config = TrainConfig(images=1000, batch=64, save_every_images=640, sample_every_images=100)
    assert (config.total_steps, config.save_every, config.sample_every) == (16, 10, 2)
    assert config.evaluate_every is None
    assert TrainConfig(steps=9, batch=64, evaluate_every_images=130).evaluate_every == 3
