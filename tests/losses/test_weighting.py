"""The weight that a loss puts on each t, against what the papers derive."""

from typing import get_args

import pytest
import torch
from torch import nn

from flowmatch.flow import Flow
from flowmatch.losses import (
    EDM,
    Constant,
    Draws,
    FlowMatching,
    MinSNR,
    Sigmoid,
    Uncertainty,
    WeightingConfig,
)
from flowmatch.paths import Linear, PathConfig, Preconditioned, Prediction, Trig
from flowmatch.times import Adaptive, LogNormal, Stratified, Uniform

T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
PATHS = [member() for member in get_args(get_args(PathConfig)[0])]
WEIGHTINGS = [member() for member in get_args(get_args(WeightingConfig)[0])]
paths = pytest.mark.parametrize("path", PATHS, ids=repr)


def weight(predict, path=Linear(), t=T, **options):
    loss = FlowMatching(max_weight=1e15, **options)
    return loss.weight(Flow(nn.Identity(), path=path, predict=predict), t)


@paths
def test_min_snr(path):
    """Hang et al. 2023: min(SNR, gamma) on x1, over SNR on x0, over SNR + 1 on the v of VP."""
    snr = path.alpha(T) ** 2 / path.sigma(T) ** 2
    best = snr.clamp(max=5.0)
    torch.testing.assert_close(weight("x1", path, weighting=MinSNR()), best)
    torch.testing.assert_close(weight("x0", path, weighting=MinSNR()), best / snr)
    if isinstance(path, Trig):  # variance-preserving: v is the paper's, times pi/2
        v = weight("velocity", path, weighting=MinSNR()) * (torch.pi / 2) ** 2
        torch.testing.assert_close(v, best / (snr + 1))


@paths
def test_edm_is_weight_one_on_the_preconditioned_prediction(path):
    edm = EDM(sigma_data=0.6)
    r = path.sigma(T) / path.alpha(T)
    torch.testing.assert_close(weight("x1", path, weighting=edm), (r**2 + 0.36) / (0.6 * r) ** 2)
    preconditioned = Preconditioned(sigma_data=0.6)
    torch.testing.assert_close(weight(preconditioned, path, weighting=edm), torch.ones_like(T))
    torch.testing.assert_close(weight(preconditioned, path, space="prediction"), torch.ones_like(T))


@paths
def test_sigmoid(path):
    log_snr = 2 * (path.alpha(T) / path.sigma(T)).log()
    expected = torch.sigmoid(-1.5 - log_snr)
    torch.testing.assert_close(weight("x0", path, weighting=Sigmoid(bias=-1.5)), expected)
    torch.testing.assert_close(
        weight("x1", path, weighting=Sigmoid(bias=-1.5)), expected * log_snr.exp()
    )


def test_the_velocity_loss_of_the_linear_path_by_what_is_predicted():
    torch.testing.assert_close(weight("velocity"), torch.ones_like(T))
    torch.testing.assert_close(weight("x1"), (1 - T) ** -2)
    torch.testing.assert_close(weight("x0"), T**-2)
    torch.testing.assert_close(weight("velocity", space="x1"), (1 - T) ** 2)
    torch.testing.assert_close(weight("velocity", space="x0"), T**2)
    # a preconditioned prediction: v = x1 - x0 = ... + F sqrt(t^2 sd^2 + (1-t)^2) / (...)
    sd = 0.5
    n2 = (T * sd) ** 2 + (1 - T) ** 2
    expected = sd**2 / n2  # |det| of (x1, x0) -> (xt, v) is 1, of (xt, F) it is n / sd
    torch.testing.assert_close(weight(Preconditioned(sigma_data=sd)), expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
@pytest.mark.parametrize("predict", [*get_args(Prediction), Preconditioned()], ids=repr)
@paths
def test_weights_are_finite_and_bounded_at_the_very_ends(weighting, predict, path):
    flow = Flow(nn.Identity(), path=path, predict=predict)
    found = FlowMatching(weighting=weighting).weight(flow, torch.tensor([0.0, 1e-7, 1 - 6e-8, 1]))
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert (found <= 400).all()


def test_a_weighting_has_its_own_space():
    with pytest.raises(ValueError, match="min_snr weighs errors of x1, but space is velocity"):
        FlowMatching(weighting=MinSNR(), space="velocity")
    assert FlowMatching(weighting=MinSNR(), space="x1") is not None


def test_the_learned_uncertainty_finds_the_logarithm_of_the_mean_loss():
    """exp(-u) L + u is smallest at u(t) = ln E[L | t]; there every t weighs alike."""
    series = Uncertainty(terms=8).build().double()
    t = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    mean_loss = torch.exp(1 + 0.7 * torch.cos(torch.pi * t) - 0.4 * torch.cos(3 * torch.pi * t))
    optimizer = torch.optim.LBFGS(series.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        u = series(t)
        objective = (torch.exp(-u) * mean_loss + u).mean()
        objective.backward()
        return objective

    optimizer.step(closure)
    expected = torch.tensor([1, 0.7, 0, -0.4, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(series.weight.detach(), expected, rtol=0, atol=1e-4)


class Zero(nn.Module):
    num_classes = None

    def __init__(self):
        super().__init__()
        self.seen = []
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, cond=None):
        self.seen.append(t)
        return x * self.scale


def test_the_objective_is_the_uncertain_one_and_the_loss_the_plain_one():
    loss = FlowMatching(weighting=Uncertainty())
    learned = loss.build()
    with torch.no_grad():
        learned.uncertainty.weight[0] = 1.5
    x1 = torch.randn(16, 3)
    draws = Draws.like(x1)
    found = loss.drawn(Flow(Zero()), x1, draws=draws, learned=learned)
    plain = FlowMatching().drawn(Flow(Zero()), x1, draws=draws)
    torch.testing.assert_close(found.loss, plain.loss)
    e = torch.exp(torch.tensor(-1.5))
    torch.testing.assert_close(found.objective, e * plain.loss + 1.5)


@pytest.mark.parametrize(
    "loss", [FlowMatching(weighting=Uncertainty()), FlowMatching(time=Adaptive())], ids=repr
)
def test_a_loss_that_learns_says_so(loss):
    with pytest.raises(ValueError, match=r"learned=loss\.build\(\)"):
        loss(Flow(Zero()), torch.randn(4, 2))


def test_a_plain_loss_has_nothing_to_learn():
    assert FlowMatching(time=Stratified()).build() is None


def test_draws_of_a_stratified_time_are_the_even_ones():
    x1 = torch.randn(8, 2)
    draws, flow = Draws.like(x1), Flow(Zero())
    FlowMatching(time=Stratified(of=Uniform()))(flow, x1, draws=draws)
    assert torch.equal(flow.network.seen[0], draws.even)


@paths
def test_a_density_of_ratios_is_the_same_on_every_path(path):
    flow, x1 = Flow(Zero(), path=path), torch.randn(4096, 1)
    draws = Draws.like(x1)
    FlowMatching(time=LogNormal(mean=-0.5, std=0.9))(flow, x1, draws=draws)
    found = path.ratio(flow.network.seen[0].double()).log()
    assert found.mean().item() == pytest.approx(-0.5, abs=0.05)
    assert found.std().item() == pytest.approx(0.9, abs=0.05)


def test_an_adaptive_density_keeps_the_gradient_in_the_mean():
    """The network must not notice how often each t was drawn."""
    loss, flow = FlowMatching(time=Adaptive(bins=4, uniform_share=0.2)), Flow(Zero())
    learned = loss.build()
    learned.density.squares += torch.tensor([1.0, 4.0, 100.0, 900.0]) * 1e4
    learned.density.counts += 1e4
    x1 = torch.randn(200_000, 1) * 2
    draws = Draws.like(x1)
    found = loss.drawn(flow, x1, draws=draws, learned=learned)
    adaptive = torch.autograd.grad(found.objective.mean(), flow.network.scale)[0]
    plain = torch.autograd.grad(FlowMatching()(flow, x1, draws=draws), flow.network.scale)[0]
    # d/ds E (s xt - v)^2 at 0 is -2 E xt v = -2 E t x1^2 + 2 E (1 - t) x0^2 = -4 + 1
    assert plain.item() == pytest.approx(-3, abs=0.1)
    assert adaptive.item() == pytest.approx(-3, abs=0.2)
    assert (found.weight * found.loss).mean().item() == pytest.approx(5.0, abs=0.1)


def test_a_constant_weighting_is_one():
    assert torch.equal(Constant()(Linear(), T), torch.ones_like(T))
