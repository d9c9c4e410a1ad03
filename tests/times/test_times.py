"""Time densities: the quantile function and the density describe the same thing."""

from typing import get_args

import pytest
import torch
from scipy import stats

from flowmatch.paths import VP, Linear, Trig
from flowmatch.times import (
    Adaptive,
    Beta,
    CosMap,
    LogitNormal,
    LogNormal,
    Mode,
    Shifted,
    Stratified,
    TimeConfig,
    Uniform,
    UShaped,
    adaptive_part,
    even_numbers,
)

DENSITIES = [member() for member in get_args(get_args(TimeConfig)[0])] + [
    LogitNormal(mean=-0.8, std=1.7),
    Mode(scale=-0.9),
    Beta(a=3.0, b=1.2),
    Shifted(shift=0.3, of=CosMap()),
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


def test_log_normal_has_the_moments_of_the_noise_over_data():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_ratio = Linear().ratio(LogNormal(mean=-1.2, std=1.2).quantile(u)).log()
    assert log_ratio.mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert log_ratio.std().item() == pytest.approx(1.2, abs=1e-3)


def test_log_normal_says_that_it_counts_in_ratios_and_so_do_its_wrappers():
    assert LogNormal().by_ratio
    assert Stratified(of=Adaptive(of=LogNormal())).by_ratio
    assert not Stratified(of=LogitNormal()).by_ratio
    with pytest.raises(ValueError, match=r"add ln\(shift\) = 1\.1 to its mean"):
        Shifted(of=LogNormal())


def test_cosmap_sees_the_ratios_of_the_cosine_schedule():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(Linear().ratio(CosMap().quantile(u)), Trig().ratio(u))


@pytest.mark.parametrize("path", [Trig(), VP()], ids=repr)
def test_a_shift_of_times_is_a_factor_on_the_ratio(path):
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    shifted = Shifted(shift=2.5, of=LogitNormal()).quantile(u)
    torch.testing.assert_close(
        Linear().ratio(shifted), 2.5 * Linear().ratio(LogitNormal().quantile(u))
    )


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.7), (1.5, 1.5), (8.0, 2.0)])
def test_the_beta_quantile_is_that_of_scipy(a, b):
    u = torch.cat([torch.logspace(-6, -1, 50), 1 - torch.logspace(-1, -6, 50)]).double()
    exact = torch.from_numpy(stats.beta(a, b).ppf(u.numpy()))
    found = Beta(a=a, b=b).quantile(u)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-12)


def test_u_shaped_sees_the_ends_cosh_times_as_often():
    density = UShaped(a=4.0).density(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    ratio = torch.cosh(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(density[[0, 2]] / density[1], ratio.expand(2))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 7, 64, 100, 256, 1000])
def test_even_numbers_hold_one_in_each_part(batch):
    u = even_numbers(0, batch, batch, torch.tensor(0.5 / batch))
    assert torch.equal((u.sort().values * batch).long(), torch.arange(batch))
    u = even_numbers(0, batch, batch, torch.tensor(0.37))
    torch.testing.assert_close(u.sort().values.diff(), torch.full((batch - 1,), 1 / batch))
    parts = [
        even_numbers(i, min(i + 3, batch), batch, torch.tensor(0.37)) for i in range(0, batch, 3)
    ]
    assert torch.equal(torch.cat(parts), u)


def test_any_slice_of_even_numbers_is_spread_out():
    u = even_numbers(64, 128, 512, torch.tensor(0.5)).sort().values
    gaps = torch.cat([u, u[:1] + 1]).diff()
    assert gaps.max() < 3 / 64


def test_each_even_number_is_uniform_over_steps():
    offsets = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    u = torch.cat([even_numbers(2, 3, 4, o) for o in offsets])
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_stratified_means_vary_less():
    g = torch.Generator().manual_seed(0)
    time = Stratified(of=LogitNormal())
    spread, plain = [], []
    for _ in range(200):
        offset = torch.rand((), generator=g)
        spread.append((time.quantile(even_numbers(0, 64, 64, offset)) ** 2).mean())
        plain.append((time.quantile(torch.rand(64, generator=g)) ** 2).mean())
    assert torch.stack(spread).mean() == pytest.approx(torch.stack(plain).mean().item(), abs=0.01)
    assert torch.stack(spread).var() < torch.stack(plain).var() / 20


def test_the_learned_density_draws_in_proportion_to_the_root_mean_square_loss():
    """And the weighted losses keep the mean that they have under the plain density."""
    config = Adaptive(bins=8, halflife_images=1e9, uniform_share=0.1)
    learned = config.build()
    g = torch.Generator().manual_seed(0)

    def loss(u):
        return 1 + 9 * (u > 0.5)

    for _ in range(100):
        u = torch.rand(512, generator=g)
        learned.add(u, loss(u))
        learned.update()
    shares = learned.shares()
    expected = torch.where(torch.arange(8) < 4, 1.0, 10.0)
    expected = 0.9 * expected / expected.sum() + 0.1 / 8
    torch.testing.assert_close(shares, expected, rtol=0.01, atol=0)

    u, weight = learned.bend((torch.arange(100_000) + 0.5) / 100_000)
    counted = torch.histc(u, 8, 0, 1) / 100_000
    torch.testing.assert_close(counted, shares, rtol=1e-2, atol=0)
    assert (weight * loss(u)).mean().item() == pytest.approx(5.5, rel=1e-3)
    assert weight.mean().item() == pytest.approx(1, rel=1e-3)
    plain = loss(torch.rand(100_000, generator=g)).double().var()
    assert (weight * loss(u)).double().var() < plain / 5


def test_a_learned_density_starts_as_the_plain_one_and_forgets():
    learned = Adaptive(bins=4, halflife_images=100).build()
    u = torch.rand(64)
    bent = learned.bend(u)
    torch.testing.assert_close(bent.u, u)
    torch.testing.assert_close(bent.weight, torch.ones(64))
    learned.add(torch.full((100,), 0.1), torch.full((100,), 5.0))
    learned.update()
    first = learned.shares()
    assert first.argmax() == 0
    for _ in range(40):
        u = torch.rand(100)
        learned.add(u, torch.ones(100))
        learned.update()
    torch.testing.assert_close(learned.shares(), torch.full((4,), 0.25), rtol=0.01, atol=0)


def test_losses_that_are_not_finite_do_not_end_a_learned_density():
    learned = Adaptive(bins=4).build()
    learned.add(torch.rand(8), torch.tensor([torch.nan, torch.inf, 1, 1, 1, 1, 1, 1.0]))
    learned.update()
    assert learned.shares().isfinite().all()


def test_the_learned_part_is_found_in_wrappers():
    adaptive = Adaptive()
    assert adaptive_part(Stratified(of=adaptive)) is adaptive
    assert adaptive_part(adaptive) is adaptive
    assert adaptive_part(Stratified()) is None
    assert adaptive_part(Uniform()) is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LogNormal(std=-1), "std > 0"),
        (lambda: Mode(scale=3), "scale"),
        (lambda: UShaped(a=0), "u_shaped needs a"),
        (lambda: Beta(a=0), "beta needs a and b"),
        (lambda: Shifted(shift=0), "shift > 0"),
        (lambda: Adaptive(bins=1), "at least 2 bins"),
        (lambda: Adaptive(halflife_images=0), "halflife_images must be positive"),
        (lambda: Adaptive(uniform_share=0), "uniform_share"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
