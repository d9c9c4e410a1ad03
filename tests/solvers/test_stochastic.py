"""Stochastic solvers have the ODE's marginals, and noise that depends on its seed alone."""

import math

import pytest
import torch

from closed_form import GaussianFlow, MixtureFlow
from flowmatch.paths import VP, Linear, Polynomial, Trig
from flowmatch.sampling import bind, sample, step_noise
from flowmatch.solvers import Ancestral, Churn, EulerMaruyama, Heun, StochasticHeun

FORMS = ("sigma", "constant", "sine", "memoryless")
SOLVERS = {
    **{f"euler_maruyama-{f}": EulerMaruyama(steps=1000, diffusion=f) for f in FORMS},
    **{f"stochastic_heun-{f}": StochasticHeun(steps=500, diffusion=f) for f in FORMS},
    "ancestral": Ancestral(steps=1000),
    "ancestral-half": Ancestral(steps=1000, eta=0.5),
    "edm_churn": Churn(steps=300, churn=60.0),
}
every = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
PATHS = [Linear(), Trig(), VP()]


def law(solver, flow, *, t0=0.0, t1=1.0):
    """Mean and standard deviation that a solver gives at `t1`, exactly.

    A Gaussian flow's field is affine in x, so the result is an affine function of x0 and of each
    step's noise: feeding one unit of each at a time finds every coefficient.
    """
    draws = solver.steps
    x = torch.zeros(draws + 2, 1, dtype=torch.float64)
    x[draws] = 1.0  # the row of x0; the last row is all zero

    def units(k, state):
        noise = torch.zeros_like(state)
        noise[k] = 1.0
        return noise

    start = flow.solution(torch.tensor([0.0, 1.0], dtype=torch.float64), t0)
    x = start[0] + (start[1] - start[0]) * x
    out = solver.integrate(bind(flow, noise=units), x, t0=t0, t1=t1)
    mean = out[-1, 0]
    return float(mean), float((out[:-1, 0] - mean).square().sum().sqrt())


@every
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.kind)
def test_marginals_are_those_of_the_ode(solver, path):
    flow = GaussianFlow(mean=1.5, std=0.5, path=path)
    for t in (0.5, 0.9):
        ends = flow.solution(torch.tensor([0.0, 1.0], dtype=torch.float64), t)
        mean, std = law(solver, flow, t1=t)
        assert mean == pytest.approx(float(ends[0]), abs=0.02)
        assert std == pytest.approx(float(ends[1] - ends[0]), rel=0.03)


@pytest.mark.parametrize("form", FORMS[:3])
@pytest.mark.parametrize(("kind", "order"), [(EulerMaruyama, 1), (StochasticHeun, 2)])
def test_weak_order(kind, order, form):
    flow = GaussianFlow()
    ends = flow.solution(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.8)
    exact = float(ends[1] - ends[0])
    error = [
        abs(law(kind(steps=n, diffusion=form), flow, t0=0.1, t1=0.8)[1] - exact) for n in (160, 320)
    ]
    # the start of the range is a point of the ODE, so its law is right from the beginning
    assert math.log2(error[0] / error[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("form", ["sigma", "constant"])
def test_weak_order_from_where_a_path_stands_still(form):
    """At t=0 of this path the velocity is zero and says nothing, but x itself is the source."""
    flow = GaussianFlow(path=Polynomial())
    ends = flow.solution(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.9)
    exact = float(ends[1] - ends[0])
    solvers = (StochasticHeun(steps=n, diffusion=form) for n in (80, 160))
    error = [abs(law(solver, flow, t1=0.9)[1] - exact) for solver in solvers]
    assert math.log2(error[0] / error[1]) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [EulerMaruyama, StochasticHeun], ids=lambda k: k.kind)
def test_no_step_overshoots_on_narrow_data(kind, form):
    """Where g^2 h is far above sigma^2, a step would throw x0 about instead of replacing it."""
    for std, steps in ((0.03, 50), (0.01, 400)):
        _, found = law(kind(steps=steps, diffusion=form), GaussianFlow(std=std))
        assert 0.7 < found / std < 1.2


@every
def test_a_mixture_keeps_its_modes(solver):
    flow = MixtureFlow()
    x0 = torch.randn(2000, 1, dtype=torch.float64)
    x1 = sample(flow, x0, type(solver)(**{**vars(solver), "steps": 100}), seeds=range(2000))
    near = (x1 - torch.tensor([[-2.0, 1.0, 2.5]], dtype=torch.float64)).abs().min(1)
    shares = torch.bincount(near.indices, minlength=3) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.05)
    assert float(near.values.square().mean().sqrt()) == pytest.approx(0.3, abs=0.05)


def test_no_noise_is_the_ode():
    flow, x0 = GaussianFlow(), torch.randn(8, 2, dtype=torch.float64)
    heun = sample(flow, x0, Heun(steps=7))
    quiet = (StochasticHeun(steps=7, scale=0.0), Churn(steps=7, churn=0.0))
    for solver in quiet:
        torch.testing.assert_close(sample(flow, x0, solver), heun)
    torch.testing.assert_close(
        sample(flow, x0, Ancestral(steps=7, eta=0.0)),
        sample(flow, x0, EulerMaruyama(steps=7, scale=0.0)),
    )


@pytest.mark.parametrize("solver", [EulerMaruyama(steps=5), Churn(steps=5)], ids=lambda s: s.kind)
def test_noise_follows_from_stream_and_seed(solver):
    flow, x0 = GaussianFlow(), torch.zeros(4, 2)
    first = sample(flow, x0, solver, seeds=[3, 1, 4, 5], stream=7)
    again = sample(flow, x0[:2], solver, seeds=[4, 3], stream=7)
    torch.testing.assert_close(again, first[[2, 0]])
    assert not torch.equal(first, sample(flow, x0, solver, seeds=[3, 1, 4, 5], stream=8))
    assert not torch.equal(first[0], first[1])
    with pytest.raises(ValueError, match="2 seeds for a batch of 4"):
        sample(flow, x0, solver, seeds=[1, 2])


def test_each_draw_has_its_own_noise():
    draw = step_noise(range(1000))
    first, second = (draw(k, torch.zeros(1000, 4)) for k in (0, 1))
    assert abs(float((first * second).mean())) < 0.1
    assert float(first.std()) == pytest.approx(1, abs=0.05)


MISTAKES = {
    "backward": (lambda: sample(GaussianFlow(), torch.zeros(2, 2), Ancestral(), t0=1.0, t1=0.0),
                 "cannot run backward from t=1 to t=0"),
    "eta": (lambda: Ancestral(eta=1.5), r"eta in \[0, 1\]"),
    "churn": (lambda: Churn(churn=-1.0), "churn >= 0"),
    "form": (lambda: EulerMaruyama(diffusion="loud"), "known: sigma, constant, sine, memoryless"),
    "scale": (lambda: EulerMaruyama(scale=-1.0), "at least 0"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
