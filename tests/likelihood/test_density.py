"""log_prob against densities in closed form."""

import contextlib
import math
from typing import get_args

import pytest
import torch
from known_flows import SineFlow, linear, mixture
from torch.nn.attention import SDPBackend, sdpa_kernel

import flowmatch as fm
from closed_form import GaussianFlow
from flowmatch.likelihood import (
    Exact,
    Hutchinson,
    estimate_log_prob,
    log_prob,
    standard_normal,
)
from flowmatch.networks import UNetConfig
from flowmatch.paths import VP, Trig
from flowmatch.solvers import AnySolver, Dopri5, Euler, EulerMaruyama, GridSolver, Heun

FINE = Dopri5(rtol=1e-9, atol=1e-9)
SOLVERS = [s(steps=200) if issubclass(s, GridSolver) else s() for s in get_args(AnySolver)]
PLAIN = [s for s in SOLVERS if not (s.needs_path or s.stochastic)]


def points(*shape):
    return 1 + torch.randn(*shape, dtype=torch.float64)


def gaussian(x, mean=1.5, std=0.5):
    law = torch.distributions.Normal(*torch.tensor([mean, std], dtype=torch.float64))
    return law.log_prob(x).flatten(1).sum(1)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2, 3)])
def test_a_gaussian_has_its_density(shape):
    x1 = points(8, *shape)
    nats = log_prob(GaussianFlow(), x1, FINE, divergence=Exact())
    torch.testing.assert_close(nats, gaussian(x1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", PLAIN, ids=lambda s: s.kind)
def test_every_plain_solver_carries_a_density(solver):
    x1 = GaussianFlow().solution(torch.randn(16, 2, dtype=torch.float64), 1.0)
    tolerance = 0.1 if isinstance(solver, Euler) else 2e-3
    nats = log_prob(GaussianFlow(), x1, solver, divergence=Exact())
    torch.testing.assert_close(nats, gaussian(x1), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("flow", "x1"),
    [
        (mixture(), 2 * torch.randn(32, 2, dtype=torch.float64)),
        (linear(), torch.randn(16, 4, dtype=torch.float64)),
        (SineFlow(), torch.linspace(-2.8, 2.8, 15, dtype=torch.float64)[:, None]),
    ],
    ids=["mixture", "linear", "sine"],
)
def test_known_densities(flow, x1):
    result = estimate_log_prob(flow, x1, FINE, divergence=Exact())
    torch.testing.assert_close(result.nats, flow.log_prob(x1), rtol=0, atol=1e-6)
    assert not result.error.any()


def test_the_latent_is_where_the_sample_came_from():
    x0 = torch.randn(8, 2, 3, dtype=torch.float64)
    result = estimate_log_prob(GaussianFlow(), GaussianFlow().solution(x0, 1.0), FINE)
    torch.testing.assert_close(result.x0, x0, rtol=0, atol=1e-6)


def test_stopped_early_it_is_the_density_of_that_time():
    x = points(8, 2)
    nats = log_prob(GaussianFlow(), x, FINE, divergence=Exact(), t1=0.7)
    std = math.sqrt(0.7**2 * 0.5**2 + 0.3**2)
    torch.testing.assert_close(nats, gaussian(x, 0.7 * 1.5, std), rtol=0, atol=1e-6)


def test_a_path_that_is_infinitely_fast_at_the_data_is_stopped_before():
    flow, x1 = GaussianFlow(path=VP()), points(8, 2)
    with pytest.raises(ValueError, match=r"pass t1=0\.999"):
        log_prob(flow, x1, divergence=Exact())

    def law(x, t):
        c = VP().coefficients(torch.tensor(t, dtype=torch.float64))
        return gaussian(x, float(c.alpha) * 1.5, float((c.alpha * 0.5) ** 2 + c.sigma**2) ** 0.5)

    nats = log_prob(flow, x1, FINE, divergence=Exact(), t1=0.99, prior=lambda x0: law(x0, 0.0))
    torch.testing.assert_close(nats, law(x1, 0.99), rtol=0, atol=1e-5)


class PredictsData(torch.nn.Module):
    """The exact x1-prediction of a Gaussian flow."""

    num_classes = None

    def forward(self, x, t, cond=None):
        field = GaussianFlow()
        return field.path.convert(field(x, t), x, t, source="velocity", to="x1")


def test_a_network_that_predicts_data():
    flow, x1 = fm.Flow(PredictsData(), predict="x1"), points(8, 2)
    std = math.sqrt(0.99**2 * 0.5**2 + 0.01**2)
    nats = log_prob(flow, x1, FINE, divergence=Exact(), t1=0.99)
    torch.testing.assert_close(nats, gaussian(x1, 0.99 * 1.5, std), rtol=0, atol=1e-5)
    # from t=0.99 on the velocity is held: dx/dt = rate (x - rest), a scaling about its rest
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    zero, one = GaussianFlow()(ends, torch.full((2,), 0.99, dtype=torch.float64)).flatten()
    rate, rest = one - zero, -zero / (one - zero)
    for t1 in (0.999, 1.0):
        scale = torch.exp(-rate * (t1 - 0.99))
        exact = gaussian(rest + (x1 - rest) * scale, 0.99 * 1.5, std) + 2 * scale.log()
        nats = log_prob(flow, x1, FINE, divergence=Exact(), t1=t1)
        torch.testing.assert_close(nats, exact, rtol=0, atol=1e-5)


def test_other_paths_are_the_same_density():
    x1 = points(8, 2)
    nats = log_prob(GaussianFlow(path=Trig()), x1, FINE, divergence=Exact())
    torch.testing.assert_close(nats, gaussian(x1), rtol=0, atol=1e-6)


def test_a_condition_gives_the_conditional_density():
    def field(x, t, cond):
        shift = cond["label"][:, None].to(x.dtype)
        return GaussianFlow(mean=0.0)(x - t[:, None] * shift, t) + shift

    x1, labels = points(4, 2), torch.tensor([0, 1, 2, 3])
    nats = log_prob(field, x1, FINE, labels, divergence=Exact())
    expected = gaussian(x1 - labels[:, None], 0.0)
    torch.testing.assert_close(nats, expected, rtol=0, atol=1e-6)


def test_dtypes():
    for given, got in ((torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)):
        result = estimate_log_prob(GaussianFlow(), points(3, 2).to(given))
        assert result.nats.dtype == result.error.dtype == result.x0.dtype == got


@pytest.mark.parametrize("solver", [Dopri5(rtol=1e-6, atol=1e-6), Heun(steps=40)], ids=repr)
def test_parameters_get_the_gradient_of_the_likelihood(solver):
    """`dx/dt = p x` makes N(0, e^2p): d log p(x1) / dp = x1^2 e^-2p - 1, in each coordinate."""
    p = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x1 = points(8, 3)
    log_prob(lambda x, t, cond: p * x, x1, solver, divergence=Exact()).sum().backward()
    expected = (x1**2 * torch.exp(-2 * p.detach()) - 1).sum()
    torch.testing.assert_close(p.grad, expected, rtol=1e-3, atol=0)


def test_the_gradient_at_a_sample_is_the_score():
    flow, x1 = mixture(), torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(log_prob(flow, x1, FINE, divergence=Exact()).sum(), x1)
    (expected,) = torch.autograd.grad(flow.log_prob(x1).sum(), x1)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-5)


def test_maximum_likelihood_fits_a_gaussian():
    x1 = 2 + 0.5 * torch.randn(256, 1, dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        nats = log_prob(lambda x, t, cond: weights[0] + weights[1] * x, x1, Heun(steps=8))
        (-nats.mean()).backward()
        optimizer.step()
    best = gaussian(x1, x1.mean().item(), x1.std(correction=0).item()).mean()
    assert nats.mean().item() == pytest.approx(best.item(), abs=0.01)


def awake_unet(**options):
    """A tiny U-Net with attention, none of whose layers is zero."""
    config = UNetConfig(
        channels=8, multipliers=(1, 2), blocks=1, attention_resolutions=(2,), heads=2, **options
    )
    network = config.build((1, 4, 4)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_the_exact_divergence_of_a_unet_is_the_trace_of_its_jacobian():
    flow, x1 = fm.Flow(awake_unet(num_classes=3)).eval(), torch.randn(3, 1, 4, 4).double()
    labels, t = torch.tensor([0, 2, 1]), torch.ones(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, t, labels), x1)
    own = torch.stack([jacobian[i, ..., i, :, :, :].reshape(16, 16) for i in range(3)])
    result = estimate_log_prob(flow, x1, Euler(steps=1), labels, divergence=Exact())
    x0 = x1 - flow(x1, t, labels)
    expected = standard_normal(x0) - own.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(result.x0, x0)
    torch.testing.assert_close(result.nats, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(probes=2)], ids=lambda d: d.kind)
def test_every_parameter_of_a_unet_gets_the_gradient(checkpointing, divergence):
    flow = fm.Flow(awake_unet(gradient_checkpointing=checkpointing)).eval()
    x1 = torch.randn(2, 1, 4, 4).double()
    nats = log_prob(flow, x1, Heun(steps=1), divergence=divergence)
    with sdpa_kernel(SDPBackend.MATH) if checkpointing else contextlib.nullcontext():
        nats.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    weight = flow.network.middle_block[1].qkv.weight
    numeric = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            weight[0, 0] += step
            numeric.append(log_prob(flow, x1, Heun(steps=1), divergence=divergence).sum())
            weight[0, 0] -= step
    slope = (numeric[0] - numeric[1]) / 2e-5
    torch.testing.assert_close(weight.grad[0, 0], slope, rtol=1e-4, atol=1e-7)


def test_no_graph_is_kept_where_no_gradient_is_wanted():
    network = fm.networks.MLP(dim=2, width=8)
    x1 = torch.randn(4, 2)
    assert log_prob(fm.Flow(network), x1, Heun(steps=2)).requires_grad
    with torch.no_grad():
        assert not log_prob(fm.Flow(network), x1, Heun(steps=2)).requires_grad
    network.requires_grad_(False)
    result = estimate_log_prob(fm.Flow(network), x1, Heun(steps=2))
    assert not result.nats.requires_grad
    assert not result.x0.requires_grad


@pytest.mark.parametrize(
    "solver", [s for s in SOLVERS if s not in PLAIN], ids=lambda solver: solver.kind
)
def test_other_solvers_are_refused(solver):
    with pytest.raises(ValueError, match=f"{solver.kind} .* use dopri5"):
        log_prob(GaussianFlow(), points(2, 2), solver)


def test_mistakes_are_named():
    x1 = points(2, 2)
    with pytest.raises(ValueError, match="adds noise"):
        log_prob(GaussianFlow(), x1, EulerMaruyama(steps=4))
    with pytest.raises(ValueError, match="dequantise"):
        log_prob(GaussianFlow(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="3 seeds for a batch of 2"):
        log_prob(GaussianFlow(), x1, seeds=range(3))
    with pytest.raises(ValueError, match="no derivative"):
        log_prob(torch.no_grad()(GaussianFlow().__call__), x1)
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"no derivative.*add 0 \* x"):
        log_prob(lambda x, t, cond: weight.expand(len(x), 2), x1)
    constant = log_prob(lambda x, t, cond: weight + 0 * x, x1)
    torch.testing.assert_close(constant, standard_normal(x1 - 1), rtol=1e-4, atol=1e-4)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference mode"):
        log_prob(GaussianFlow(), x1)
