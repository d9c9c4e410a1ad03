"""MMD and energy distance: Gaussians with known expectations, and sums over pairs."""

import math

import pytest
import torch

from flowmatch.metrics import energy_distance, mmd

BOTH = pytest.mark.parametrize("metric", [mmd, energy_distance])


def folded(mean, std):
    """E|Z| of Z ~ N(mean, std^2)."""
    bump = std * math.sqrt(2 / math.pi) * math.exp(-((mean / std) ** 2) / 2)
    return bump + mean * math.erf(mean / (std * math.sqrt(2)))


def test_energy_of_gaussians_on_a_line():
    x, y = torch.randn(5000, 1), 1 + 2 * torch.randn(5000, 1)
    expected = 2 * folded(1, 5**0.5) - folded(0, 2**0.5) - folded(0, 8**0.5)
    assert energy_distance(x, y) == pytest.approx(expected, rel=0.07)


def test_mmd_of_gaussians_in_the_plane():
    x, y = torch.randn(4000, 2), torch.randn(4000, 2) + torch.tensor([1.0, 0.0])
    median = 2 * math.log(2) ** 0.5  # |y - y'| / 2^(1/2) is a Rayleigh law
    expected = 0.0
    for factor in (0.25, 0.5, 1, 2, 4):
        s2 = (factor * median) ** 2
        peak = s2 / (s2 + 2)  # E exp(-|z|^2 / (2 s^2)) of z ~ N(0, 2) in the plane
        expected += 2 * peak * (1 - math.exp(-1 / (2 * (s2 + 2)))) / 5
    assert mmd(x, y) == pytest.approx(expected, rel=0.1)


def test_sums_over_pairs_beyond_one_tile():
    x, y = torch.randn(2100, 2, dtype=torch.float64), torch.randn(900, 2, dtype=torch.float64) + 1
    between, within_x, within_y = torch.cdist(x, y), torch.pdist(x), torch.pdist(y)
    energy = float(2 * between.mean() - within_x.mean() - within_y.mean())
    assert energy_distance(x, y) == pytest.approx(energy, rel=1e-6)
    s = within_y.median()

    def k(d):
        factors = (0.25, 0.5, 1, 2, 4)
        return sum(torch.exp(-((d / (f * s)) ** 2) / 2).mean() for f in factors) / 5

    expected = float(k(within_x) + k(within_y) - 2 * k(between))
    assert mmd(x, y) == pytest.approx(expected, rel=1e-6)


@BOTH
def test_equal_laws_give_zero_on_average_with_either_sign(metric):
    values = torch.tensor([metric(*torch.randn(2, 100, 3)) for _ in range(100)])
    assert values.min() < 0 < values.max()
    assert abs(values.mean()) < 4 * values.std() / 10
    assert metric(torch.randn(100, 3), torch.randn(100, 3) + 1) > 10 * values.std()


@BOTH
def test_neither_order_nor_distance_from_the_origin_matters(metric):
    x, y = torch.randn(2, 80, 2, 2, dtype=torch.float64)
    found = metric(x, y)
    assert metric(x[torch.randperm(80)], y[torch.randperm(80)]) == pytest.approx(found, rel=1e-9)
    assert metric(x + 1e4, y + 1e4) == pytest.approx(found, rel=1e-5)


def test_mmd_is_free_of_units_and_energy_is_not():
    x, y = torch.randn(80, 2, dtype=torch.float64), torch.randn(80, 2, dtype=torch.float64) + 1
    assert mmd(1000 * x, 1000 * y) == pytest.approx(mmd(x, y), rel=1e-9)
    assert energy_distance(10 * x, 10 * y) == pytest.approx(10 * energy_distance(x, y), rel=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="median distance between rows of y is 0"):
        mmd(torch.randn(5, 2), torch.zeros(5, 2))
    for metric in (mmd, energy_distance):
        with pytest.raises(ValueError, match="at least 2 rows of x"):
            metric(torch.zeros(1, 2), torch.zeros(5, 2))
        with pytest.raises(ValueError, match="1 of 2 rows of y hold NaN"):
            metric(torch.zeros(2, 1), torch.tensor([[0.0], [torch.inf]]))
