"""Averages of weights: their decays against their formulas, their profiles against integrals."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import flowmatch as fm
from flowmatch.training.ema import EMA, WIDEST_STD, Averages, Exponential, Power, gamma_of


def decay(profile, update: int, batch: int = 1) -> float:
    return profile.decay_at(update, batch=batch, images=update * batch)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Exponential(warmup="none"), lambda n: 0.9999),
        (Exponential(warmup="tensorflow-like"), lambda n: min(0.9999, (1 + n) / (10 + n))),
        (Exponential(warmup="crowsonkb"), lambda n: min(0.9999, 1 - (1 + n) ** -0.75)),
        (
            Exponential(warmup="crowsonkb", inv_gamma=2.0, power=2 / 3, decay=0.99),
            lambda n: min(0.99, 1 - (1 + n / 2) ** (-2 / 3)),
        ),
    ],
    ids=lambda v: v.warmup if isinstance(v, Exponential) else "",
)
def test_exponential_warm_ups(config, expected):
    for n in (1, 2, 10, 1000, 10_000_000):
        assert decay(config, n, batch=64) == pytest.approx(expected(n))


def test_crowsonkb_reaches_the_documented_decays():
    config = Exponential(power=0.75)
    assert decay(config, 10_000) == pytest.approx(0.999, abs=1e-5)
    assert decay(config, 215_443) == pytest.approx(0.9999, abs=1e-6)


def test_a_half_life_in_images_does_not_depend_on_the_batch():
    config = Exponential(halflife_images=1000, warmup="none")
    for batch in (1, 10, 250):
        assert decay(config, 5, batch) ** (1000 / batch) == pytest.approx(0.5)


def test_the_average_follows_its_closed_form():
    module = nn.Linear(3, 3).double()
    ema = EMA(module)
    expected = module.weight.detach().clone()
    for n in range(1, 20):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight))
        d = decay(Exponential(), n)
        expected = d * expected + (1 - d) * module.weight.detach()
        ema.update(d)
    torch.testing.assert_close(ema.module.weight, expected)
    assert not ema.module.weight.requires_grad


@pytest.mark.parametrize("std", [1e-4, 0.01, 0.05, 0.1, 0.25, 0.2886, WIDEST_STD])
def test_the_exponent_has_the_std(std):
    gamma = gamma_of(std)
    assert gamma >= 0
    assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(std, rel=1e-12)


def test_exponents_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


def follow(profile, weights: np.ndarray, *, batch: int = 1) -> np.ndarray:
    """The average of weights [N, D] by a profile's updates, from a start that must not matter."""
    average = np.full(weights.shape[1:], np.nan if isinstance(profile, Power) else 0.0)
    for n, now in enumerate(weights, start=1):
        d = decay(profile, n, batch)
        average = now if d == 0 else d * average + (1 - d) * now
    return average


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.25])
def test_the_updates_are_the_integral_of_the_profile(std):
    """A weight that counts at step k alone comes out as the profile's integral over that step."""
    gamma, n = gamma_of(std), 300
    profile = follow(Power(std=std), np.eye(n))
    ends = (np.arange(n + 1) / n) ** (gamma + 1)
    np.testing.assert_allclose(profile, np.diff(ends), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_std_of_the_profile_is_the_one_asked_for(std):
    n = 2000
    profile = follow(Power(std=std), np.eye(n))
    middles = (np.arange(n) + 0.5) / n
    mean = profile @ middles
    assert profile.sum() == pytest.approx(1)
    assert (profile @ (middles - mean) ** 2) ** 0.5 == pytest.approx(std, rel=1e-4)


def test_a_weight_that_grows_with_time_is_averaged_to_its_integral():
    """integral of tau (gamma + 1) tau^gamma over [0, 1] = (gamma + 1) / (gamma + 2)"""
    gamma, n = gamma_of(0.1), 4000
    middles = (np.arange(n)[:, None] + 0.5) / n
    (average,) = follow(Power(std=0.1), middles)
    assert average == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-6)


def test_a_power_profile_in_images_does_not_depend_on_the_batch():
    """Weights that are the same over 12 images are averaged alike in steps of 1, 3 and 12."""
    weights = np.random.default_rng(0).normal(size=(20, 5))
    once, thrice, often = (
        follow(Power(std=0.1), weights.repeat(times, axis=0), batch=12 // times)
        for times in (1, 4, 12)
    )
    np.testing.assert_allclose(thrice, once, rtol=1e-12)
    np.testing.assert_allclose(often, once, rtol=1e-12)


def test_a_batch_may_change_on_the_way():
    """The decay follows from the images, so that a change of the batch leaves the profile alone."""
    power, images, average = Power(std=0.1), 0, np.zeros(100)
    for batch in (4, 4, 2, 10, 1, 29, 50):
        images += batch
        d = power.decay_at(1, batch=batch, images=images)
        now = np.zeros(100)
        now[images - batch : images] = 1 / batch
        average = d * average + (1 - d) * now
    gamma = power.gamma
    cuts = np.array([0, 4, 8, 10, 20, 21, 50, 100])
    expected = np.diff((cuts / 100) ** (gamma + 1))
    got = [average[a:b].sum() for a, b in pairwise(cuts)]
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("profile", "name", "title"),
    [
        (Exponential(), "decay0.9999", "EMA decay 0.9999"),
        (Exponential(decay=0.0), "decay0", "EMA decay 0"),
        (Exponential(decay=0.9999999), "decay0.9999999", "EMA decay 0.9999999"),
        (
            Exponential(halflife_images=500_000),
            "halflife500000",
            "EMA half-life 500,000 images",
        ),
        (Power(std=0.05), "std0.05", "EMA std 0.05"),
        (Power(std=0.1), "std0.1", "EMA std 0.1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_names(profile, name, title):
    assert (profile.name, profile.title) == (name, title)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2887, 1.0, float("nan")])
def test_a_std_that_no_profile_has_is_refused(std):
    with pytest.raises(ValueError, match=r"lies in \(0, 0\.28867\]"):
        Power(std=std)


def test_several_averages_are_each_what_it_is_alone():
    flow = fm.Flow(fm.networks.MLP(2, width=4))
    profiles = (Power(std=0.1), Exponential(decay=0.5), Power(std=0.05))
    together = Averages(flow, profiles)
    alone = [Averages(flow, [profile]) for profile in profiles]
    for n in range(1, 8):
        with torch.no_grad():
            for p in flow.parameters():
                p.add_(torch.randn_like(p))
        for averages in (together, *alone):
            averages.update(n, batch=8, images=8 * n)
    assert list(together.networks) == list(profiles)
    assert together.own.network is together.networks[profiles[0]]
    for profile, single in zip(profiles, alone, strict=True):
        ours, theirs = together.networks[profile], single.own.network
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
