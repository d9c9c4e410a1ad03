"""Exponential integrators against diffusers' schedulers, where the mathematics is the same."""

import math
import warnings

import pytest
import torch

from closed_form import GaussianFlow, MixtureFlow
from flowmatch.paths import VP, Linear, Trig
from flowmatch.sampling import bind, sample
from flowmatch.solvers import (
    DDIM,
    DEIS,
    DPMpp2M,
    DPMpp3M,
    EDMGrid,
    Euler,
    ExplicitGrid,
    Heun,
    UniPC,
)
from flowmatch.solvers.interpolation import lagrange_integrals
from flowmatch.solvers.on_path import points

FLOW = MixtureFlow()
# diffusers starts a little below pure noise; the first interval is cut off on both sides
TIMES = [0.02, 0.1, 0.22, 0.4, 0.55, 0.7, 0.84, 0.93, 0.98]


def theirs(scheduler, x, times):
    """Walk a scheduler over given times of ours; its sigma is 1 - t, its prediction minus v."""
    sigmas = torch.tensor([1 - t for t in times], dtype=torch.float64)
    scheduler.set_timesteps(len(times) - 1)
    scheduler.sigmas = sigmas
    scheduler.timesteps = sigmas[:-1] * 1000
    scheduler.num_inference_steps = len(times) - 1
    for timestep, t in zip(scheduler.timesteps, times[:-1], strict=True):
        v = FLOW(x, torch.full((len(x),), t, dtype=x.dtype))
        x = scheduler.step(-v, timestep, x).prev_sample
    return x


def ours(solver, x, times):
    """The same on our side: an explicit grid stretched over the range."""
    low, high = times[0], times[-1]
    inner = [(t - low) / (high - low) for t in times[1:-1]]
    grid = ExplicitGrid(values=(0.0, *inner, 1.0))
    return sample(FLOW, x, solver(steps=len(times) - 1, grid=grid), t0=low, t1=high)


def diffusers(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffusers")
    return getattr(module, name)(**options)


FLOW_OPTIONS = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "final_sigmas_type": "sigma_min",
    "lower_order_final": False,
}


@pytest.mark.parametrize(
    ("solver", "name", "options"),
    [
        (DPMpp2M, "DPMSolverMultistepScheduler", {"solver_order": 2}),
        (UniPC, "UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
    ],
    ids=["dpmpp_2m", "unipc"],
)
def test_it_is_the_method_of_diffusers(solver, name, options):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    oracle = theirs(diffusers(name, **FLOW_OPTIONS, **options), x, TIMES)
    torch.testing.assert_close(ours(solver, x, TIMES), oracle, rtol=1e-6, atol=1e-6)


def test_euler_is_the_flow_scheduler_of_diffusers():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    scheduler = diffusers("FlowMatchEulerDiscreteScheduler")
    oracle = theirs(scheduler, x, TIMES)
    torch.testing.assert_close(ours(Euler, x, TIMES), oracle, rtol=1e-6, atol=1e-6)


def test_the_third_order_of_diffusers_is_two_and_ours_is_three():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = sample(FLOW, x, Heun(steps=20_000), t0=0.1, t1=0.9)
    errors = {"ours": [], "theirs": []}
    for n in (80, 160):
        # the first steps are of lower order in both, so they are made tiny
        tiny = [0.1 + 0.8 / n * 2.0**-k for k in range(9, 0, -1)]
        times = [0.1, *tiny, *(0.1 + 0.8 * i / n for i in range(1, n + 1))]
        scheduler = diffusers("DPMSolverMultistepScheduler", solver_order=3, **FLOW_OPTIONS)
        errors["theirs"].append((theirs(scheduler, x, times) - exact).abs().mean())
        errors["ours"].append((ours(DPMpp3M, x, times) - exact).abs().mean())
    order = {k: math.log2(a / b) for k, (a, b) in errors.items()}
    assert order["ours"] == pytest.approx(3, abs=0.35)
    assert order["theirs"] == pytest.approx(2, abs=0.35)


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()], ids=lambda p: p.kind)
@pytest.mark.parametrize("solver", [DPMpp2M, DPMpp3M, UniPC, DEIS], ids=lambda s: s.kind)
def test_it_is_exact_where_its_prediction_is_constant(solver, path):
    """Data at one point: x1 never changes, and one step of any length is exact. So is x0."""
    flow = GaussianFlow(mean=1.5, std=1e-12, path=path)
    x0 = torch.randn(8, 2, dtype=torch.float64)
    begin = flow.solution(x0, 0.1)
    x = sample(flow, begin, solver(steps=4), t0=0.1, t1=0.8)
    torch.testing.assert_close(x, flow.solution(x0, 0.8), rtol=1e-8, atol=1e-8)


def test_the_weights_integrate_polynomials_exactly():
    nodes = [0.5, 0.2, 0.1]
    weights = lagrange_integrals(nodes, 0.5, 0.9)
    for k in range(3):
        integral = (0.9 ** (k + 1) - 0.5 ** (k + 1)) / (k + 1)
        assert sum(w * t**k for w, t in zip(weights, nodes, strict=True)) == pytest.approx(integral)


def test_points_solve_for_what_a_velocity_is_made_of():
    x0, x1 = torch.randn(2, 4, 3, dtype=torch.float64)
    for path in (Linear(), Trig(), VP()):
        for at in points(path, [0.0, 0.3, 0.9]):
            x = at.alpha * x1 + at.sigma * x0
            v = at.d_alpha * x1 + at.d_sigma * x0
            torch.testing.assert_close(at.x1(x, v), x1)
            torch.testing.assert_close(at.x0(x, v), x0)
            end = points(path, [0.95])[0]
            torch.testing.assert_close(at.jump(x, v, end), end.alpha * x1 + end.sigma * x0)


def test_gradients_reach_the_field():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def field(x, t, cond=None):
        return scale * FLOW(x, t)

    x = torch.randn(4, 1, dtype=torch.float64)
    UniPC(steps=4).integrate(bind(field, path=Linear()), x).sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0


@pytest.mark.parametrize("path", [Linear(), Trig()], ids=lambda p: p.kind)
@pytest.mark.parametrize("ratio", [5, 50, 500])
def test_deis_keeps_a_constant_prediction_whatever_the_grid(path, ratio):
    before, here, end = points(path, [0.25 / ratio, 0.5 / ratio, 0.5])
    c, weights = DEIS(steps=1).weights(path, [here, before], end)
    assert sum(weights) == pytest.approx(end.sigma - c * here.sigma, abs=1e-10)


@pytest.mark.parametrize("solver", [DPMpp2M, DPMpp3M, UniPC], ids=lambda s: s.kind)
def test_a_long_second_step_does_not_explode(solver):
    """After the tiny first step of an EDM grid, a line through t=0 misses by orders of magnitude"""
    x0 = torch.randn(64, 1, dtype=torch.float64)
    exact = sample(FLOW, x0, Heun(steps=400))
    grids = ((EDMGrid(), 3), (EDMGrid(sigma_min=0.02, sigma_max=20.0), 4))
    for grid, steps in grids:
        first_order = (sample(FLOW, x0, DDIM(steps=steps, grid=grid)) - exact).square().mean()
        found = (sample(FLOW, x0, solver(steps=steps, grid=grid)) - exact).square().mean()
        assert found < 1.5 * first_order
