"""Wasserstein distances: shifts and Gaussians, whose distances are known."""

from itertools import permutations

import pytest
import torch
from scipy.stats import norm

from flowmatch.metrics import sliced_wasserstein2, wasserstein2

BOTH = pytest.mark.parametrize("metric", [wasserstein2, sliced_wasserstein2])


def quantiles(n, mean, std):
    """Points that are as good as N(mean, std^2) on a line: [n, 1] float64."""
    return torch.from_numpy(norm.ppf((torch.arange(n).double() + 0.5) / n, mean, std))[:, None]


def test_a_shift_of_a_cloud_is_its_length():
    x, m = torch.randn(200, 3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5])
    shifted = (x + m)[torch.randperm(200)]
    assert wasserstein2(x, shifted) == pytest.approx(5.25**0.5, rel=1e-12)
    # of which a line sees a third on average
    assert sliced_wasserstein2(x, shifted) == pytest.approx((5.25 / 3) ** 0.5, rel=0.05)


@BOTH
def test_gaussians_on_a_line(metric):
    x, y = quantiles(1000, 1.0, 0.5), quantiles(1000, -0.5, 2.0)
    assert metric(x, y) == pytest.approx((1.5**2 + 1.5**2) ** 0.5, rel=5e-3)
    assert metric(y, x) == pytest.approx(metric(x, y), rel=1e-12)


def test_the_assignment_is_the_best_of_all():
    x, y = torch.randn(2, 6, 2, dtype=torch.float64)
    least = min(float((x - y[list(p)]).square().sum(1).mean()) for p in permutations(range(6)))
    assert wasserstein2(x, y) == pytest.approx(least**0.5, rel=1e-12)


@BOTH
def test_the_order_of_rows_does_not_matter_and_a_set_is_at_zero_from_itself(metric):
    x, y = torch.randn(2, 150, 2, 2)
    order = torch.randperm(150)
    assert metric(x[order], y) == pytest.approx(metric(x, y), rel=1e-12)
    assert metric(x[order], x) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(4, 6), (6, 4), (5, 1), (12, 4)])
def test_unequal_numbers_are_as_if_each_point_were_repeated(n, m):
    x, y = torch.randn(n, 3, dtype=torch.float64), torch.randn(m, 3, dtype=torch.float64)
    repeated = sliced_wasserstein2(x.repeat(m, 1), y.repeat(n, 1))
    assert sliced_wasserstein2(x, y) == pytest.approx(repeated, rel=1e-12)


def test_sliced_of_isotropic_gaussians_in_any_number_of_dimensions():
    x, y = torch.randn(20_000, 8), 2 * torch.randn(15_000, 8)
    assert sliced_wasserstein2(x, y, projections=64) == pytest.approx(1, rel=0.02)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="got 5 and 4; pass 4 of each, or use sliced"):
        wasserstein2(torch.zeros(5, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least 1 projection, got 0"):
        sliced_wasserstein2(torch.zeros(5, 2), torch.zeros(5, 2), projections=0)
    with pytest.raises(ValueError, match=r"the distances of 10000000 x 10000000 points need"):
        wasserstein2(torch.zeros(10_000_000, 1), torch.zeros(10_000_000, 1))
