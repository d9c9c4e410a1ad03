"""Probes: unbiased, with an honest error bar, fixed along the way, each sample's its own."""

import math
from dataclasses import dataclass

import pytest
import torch
from known_flows import linear, mixture

import flowmatch as fm
from closed_form import GaussianFlow
from flowmatch.likelihood import Exact, Hutchinson, estimate_log_prob, log_prob, mean_with_errors
from flowmatch.solvers import Dopri5, Heun, Stalled

LAWS = pytest.mark.parametrize("law", ["rademacher", "normal"])


def samples(n, dims=2):
    return torch.randn(n, dims, dtype=torch.float64)


def test_rademacher_probes_are_exact_where_the_jacobian_is_diagonal():
    x1, solver = samples(8), Dopri5(rtol=1e-8, atol=1e-8)
    exact = log_prob(GaussianFlow(), x1, solver, divergence=Exact())
    torch.testing.assert_close(log_prob(GaussianFlow(), x1, solver), exact, rtol=0, atol=1e-6)


@LAWS
def test_many_probes_agree_with_the_trace_within_their_error_bar(law):
    x1, solver = 2 * samples(200), Heun(steps=20)
    exact = log_prob(mixture(), x1, solver, divergence=Exact())
    result = estimate_log_prob(mixture(), x1, solver, divergence=Hutchinson(probes=40, law=law))
    z = (result.nats - exact) / result.error
    assert 0.85 < z.square().mean().sqrt() < 1.15
    mean = mean_with_errors(result.nats, result.error)
    assert abs(mean.mean - exact.mean()) < 3 * mean.probe_error
    assert mean.probe_error < mean.standard_error


def test_the_error_bar_is_the_known_one():
    """On dx/dt = A x each estimate is e^T A e, whose variance is known."""
    flow, probes = linear(), 25
    result = estimate_log_prob(
        flow, samples(400, 4), Heun(steps=2), divergence=Hutchinson(probes=probes)
    )
    expected = flow.probe_variance() / probes
    assert result.error.square().mean().item() == pytest.approx(expected, rel=0.05)


def test_the_mean_over_samples():
    nats, error = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.3, 0.0, 0.4])
    mean = mean_with_errors(nats, error)
    assert mean == pytest.approx((3.0, math.sqrt(7 / 3), 0.5 / 3))
    assert mean.scaled(-2, 1) == pytest.approx((-5.0, 2 * math.sqrt(7 / 3), 1 / 3))
    assert math.isnan(mean_with_errors(nats[:1], error[:1]).standard_error)


def test_one_probe_has_no_error_bar():
    assert estimate_log_prob(mixture(), samples(3)).error.isnan().all()
    assert not estimate_log_prob(mixture(), samples(3), divergence=Exact()).error.any()


@dataclass(frozen=True, kw_only=True)
class Redrawn(Hutchinson):
    """What must not be: fresh probes at every call."""

    def fix(self, x, seeds):
        def estimate(v, x, keep_graph):
            seed = int(torch.randint(2**31, ()))
            return Hutchinson(seed=seed, law=self.law).fix(x, seeds)(v, x, keep_graph)

        return estimate


@LAWS
def test_probes_stay_fixed_along_the_way(law):
    x1 = samples(4)
    fixed, redrawn = Hutchinson(law=law), Redrawn(law=law)
    for divergence, same in ((fixed, True), (redrawn, False)):
        a, b = (log_prob(mixture(), x1, Heun(steps=4), divergence=divergence) for _ in range(2))
        assert torch.equal(a, b) == same


@LAWS
def test_an_adaptive_solver_can_follow_the_probes(law):
    x1, solver = samples(2), Dopri5(rtol=1e-3, atol=1e-3, max_steps=60)
    calls = {}
    for divergence in (Exact(), Hutchinson(law=law)):
        counted = fm.CountNFE(mixture())
        log_prob(counted, x1, solver, divergence=divergence)
        calls[divergence.kind] = counted.nfe
    assert calls["hutchinson"] < 1.5 * calls["exact"]
    with pytest.raises(Stalled):  # probes that change make the right side jump at every call
        log_prob(mixture(), x1, solver, divergence=Redrawn(law=law))


@LAWS
def test_a_sample_does_not_depend_on_its_batch(law):
    x1, seeds = samples(6), [4, 8, 15, 16, 23, 42]
    divergence = Hutchinson(probes=2, law=law, seed=3)
    together = estimate_log_prob(mixture(), x1, divergence=divergence, seeds=seeds)
    order = torch.tensor([5, 0, 3])
    some = estimate_log_prob(
        mixture(), x1[order], divergence=divergence, seeds=[seeds[i] for i in order]
    )
    for a, b in zip(together, some, strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-12, atol=1e-12)


def test_seeds_and_probes_are_independent_of_each_other():
    x1 = samples(1).expand(3, 2)
    other_samples = log_prob(mixture(), x1, seeds=[0, 1, 0])
    assert other_samples[0] == other_samples[2] != other_samples[1]
    reseeded = log_prob(mixture(), x1, divergence=Hutchinson(seed=1), seeds=[0, 1, 0])
    assert not torch.equal(reseeded, other_samples)


@LAWS
def test_more_probes_keep_the_earlier_ones(law):
    x = samples(5, 4).requires_grad_()
    v = linear()(x, torch.zeros(5))
    few, many = (Hutchinson(probes=p, law=law).fix(x, range(5))(v, x, False) for p in (2, 5))
    assert few.shape == (5, 2)
    assert torch.equal(few, many[:, :2])
    assert all((column != many[:, 0]).any() for column in many[:, 1:].T)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least 1 probe"):
        Hutchinson(probes=0)
    with pytest.raises(ValueError, match="rademacher or normal"):
        Hutchinson(law="uniform")
