"""Time densities: the quantile function and the density describe the same thing."""

from typing import get_args

import pytest
import torch
from scipy import stats

from flowmatch.times import LogitNormal, TimeConfig, Uniform

DENSITIES = [member() for member in get_args(get_args(TimeConfig)[0])] + [
    LogitNormal(mean=-0.8, std=1.7)
]
every = pytest.mark.parametrize("time", DENSITIES, ids=repr)


@every
def test_the_density_integrates_to_one(time):
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    assert time.density(t).mean().item() == pytest.approx(1, abs=1e-3)


@every
def test_the_quantile_inverts_the_integrated_density(time):
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    share_below = time.density(t).cumsum(0) / 200_000
    u = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
    found = t[torch.searchsorted(share_below, u)]
    torch.testing.assert_close(time.quantile(u), found, rtol=0, atol=1e-3)


@every
def test_draws_follow_the_quantile(time):
    t = time.sample(20_000, generator=torch.Generator().manual_seed(3))
    assert t.shape == (20_000,)
    assert t.dtype == torch.float32
    assert 0 <= t.min() <= t.max() < 1
    grid = time.quantile((torch.arange(20_000) + 0.5) / 20_000)
    assert stats.ks_2samp(t.numpy(), grid.numpy()).pvalue > 1e-3


@every
def test_the_ends_of_the_uniform_numbers_stay_inside(time):
    t = time.quantile(torch.tensor([0.0, 1 - 2**-24]))
    assert t.isfinite().all()
    assert 0 <= t.min() <= t.max() < 1


def test_logit_normal_has_the_moments_of_its_logit():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logit = torch.logit(LogitNormal(mean=0.3, std=0.7).quantile(u))
    assert logit.mean().item() == pytest.approx(0.3, abs=1e-3)
    assert logit.std().item() == pytest.approx(0.7, abs=1e-3)


def test_uniform_leaves_the_numbers_alone():
    u = torch.rand(5)
    assert torch.equal(Uniform().quantile(u), u)


def test_a_std_of_zero_is_refused():
    with pytest.raises(ValueError, match="std > 0"):
        LogitNormal(std=0)
