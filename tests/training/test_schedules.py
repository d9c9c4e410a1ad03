"""Learning-rate factors and EMA decays against their formulas."""

import math

import pytest
import torch
from torch import nn

from flowmatch.training.ema import EMA, EMAConfig
from flowmatch.training.schedules import Constant, CosineDecay, LinearDecay
from flowmatch.training.settings import TrainConfig


def factors(schedule, total=100, batch=1):
    return [schedule.factor(i, total_steps=total, batch=batch) for i in range(total)]


@pytest.mark.parametrize("kind", [Constant, LinearDecay, CosineDecay])
def test_the_warm_up_is_linear_and_its_first_step_is_not_lost(kind):
    rates = factors(kind(warmup_steps=10))
    assert rates[:9] == pytest.approx([(i + 1) / 10 for i in range(9)])
    assert rates[9] == pytest.approx(1)
    assert all(r >= 0 for r in rates)


def test_the_curves():
    assert factors(Constant())[50:] == [1.0] * 50
    assert factors(LinearDecay())[49] == pytest.approx(0.5)
    assert factors(LinearDecay(final=0.2))[99] == pytest.approx(0.2)
    assert factors(CosineDecay())[99] == pytest.approx(0, abs=1e-12)
    assert factors(CosineDecay())[24] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_a_warm_up_in_images_survives_a_change_of_batch():
    schedule = CosineDecay(warmup_images=1000)
    for batch in (10, 50, 100):
        assert schedule.factor(500 // batch - 1, total_steps=2000 // batch, batch=batch) == 0.5


def test_a_warm_up_in_both_units_is_refused():
    with pytest.raises(ValueError, match="not both"):
        Constant(warmup_steps=1, warmup_images=1)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EMAConfig(warmup="none"), lambda n: 0.9999),
        (EMAConfig(warmup="tensorflow-like"), lambda n: min(0.9999, (1 + n) / (10 + n))),
        (EMAConfig(warmup="crowsonkb"), lambda n: min(0.9999, 1 - (1 + n) ** -0.75)),
        (
            EMAConfig(warmup="crowsonkb", inv_gamma=2.0, power=2 / 3, decay=0.99),
            lambda n: min(0.99, 1 - (1 + n / 2) ** (-2 / 3)),
        ),
    ],
    ids=lambda v: v.warmup if isinstance(v, EMAConfig) else "",
)
def test_ema_warm_ups(config, expected):
    for n in (1, 2, 10, 1000, 10_000_000):
        assert config.decay_at(n, batch=64) == pytest.approx(expected(n))


def test_crowsonkb_reaches_the_documented_decays():
    config = EMAConfig(power=0.75)
    assert config.decay_at(10_000, batch=1) == pytest.approx(0.999, abs=1e-5)
    assert config.decay_at(215_443, batch=1) == pytest.approx(0.9999, abs=1e-6)


def test_a_half_life_in_images_does_not_depend_on_the_batch():
    config = EMAConfig(halflife_images=1000, warmup="none")
    for batch in (1, 10, 250):
        assert config.decay_at(5, batch=batch) ** (1000 / batch) == pytest.approx(0.5)


def test_the_average_follows_its_closed_form():
    module = nn.Linear(3, 3).double()
    ema = EMA(module)
    expected = module.weight.detach().clone()
    for n in range(1, 20):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight))
        decay = EMAConfig().decay_at(n, batch=1)
        expected = decay * expected + (1 - decay) * module.weight.detach()
        ema.update(decay)
    torch.testing.assert_close(ema.module.weight, expected)
    assert not ema.module.weight.requires_grad


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
