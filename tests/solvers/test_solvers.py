"""Contract tests over every solver: declared order, both directions, and the safe end."""

import math
from typing import get_args

import pytest
import torch
from torchdiffeq import odeint

from closed_form import GaussianFlow, PointsFlow
from flowmatch.guidance import CountNFE
from flowmatch.sampling import bind, sample
from flowmatch.solvers import (
    RK4,
    Dopri5,
    Euler,
    FixedStep,
    Heun,
    Midpoint,
    SolverConfig,
    Stalled,
    by_name,
)

SOLVERS = list(get_args(get_args(SolverConfig)[0]))
FIXED = [s for s in SOLVERS if issubclass(s, FixedStep)]
every = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.kind)
fixed = pytest.mark.parametrize("solver", FIXED, ids=lambda s: s.kind)
directions = pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)], ids=["fwd", "bwd"])


def logistic(x, t, cond=None):
    """Logistic growth at the rate 1 + t: nonlinear in x and in t."""
    return (1 + t[:, None]) * x * (1 - x)


def logistic_solution(start, t):
    return 1 / (1 + (1 / start - 1) * math.exp(-(t + t**2 / 2)))


@fixed
@directions
def test_observed_order_is_the_declared_one(solver, t0, t1):
    start = torch.linspace(0.1, 2, 32, dtype=torch.float64)[:, None]
    begin, end = logistic_solution(start, t0), logistic_solution(start, t1)
    coarse, fine = (
        (sample(logistic, begin, solver(steps=n, safe_end=False), t0=t0, t1=t1) - end).abs().mean()
        for n in (20, 40)
    )
    assert math.log2(coarse / fine) == pytest.approx(solver.order, abs=0.25)


@fixed
def test_nfe_is_as_declared_with_and_without_the_safe_end(solver):
    x0 = torch.randn(4, 2)
    for safe in (True, False):
        field, instance = CountNFE(GaussianFlow()), solver(steps=7, safe_end=safe)
        sample(field, x0, instance)
        assert field.nfe == instance.nfe == 7 * solver.stages


@every
def test_forward_then_backward_returns(solver):
    options = {"steps": 200} if issubclass(solver, FixedStep) else {"rtol": 1e-8, "atol": 1e-8}
    instance = solver(safe_end=False, **options)
    x0 = torch.randn(8, 2, dtype=torch.float64)
    x1 = sample(GaussianFlow(), x0, instance)
    back = sample(GaussianFlow(), x1, instance, t0=1.0, t1=0.0)
    torch.testing.assert_close(back, x0, rtol=0, atol=0.05 if solver is Euler else 1e-3)


@every
def test_the_trajectory_ends_exactly_and_equals_integrate(solver):
    x0 = torch.randn(4, 2)
    states = list(solver().trajectory(bind(GaussianFlow()), x0))
    assert states[-1][0] == 1.0
    torch.testing.assert_close(states[-1][1], sample(GaussianFlow(), x0, solver()), rtol=0, atol=0)


@every
def test_a_sample_does_not_depend_on_its_batch(solver):
    x0 = torch.randn(16, 2)
    x0[3] *= 20  # a hard neighbour must not change the others' steps
    together = sample(GaussianFlow(), x0, solver())
    alone = sample(GaussianFlow(), x0[5:6], solver())
    torch.testing.assert_close(together[5:6], alone, rtol=1e-5, atol=1e-6)


@every
def test_gradients_flow_through_the_integration(solver):
    x0 = torch.randn(4, 2, requires_grad=True)
    solver().integrate(bind(GaussianFlow()), x0).sum().backward()
    assert x0.grad is not None
    assert x0.grad.isfinite().all()
    # the flow map contracts by std / 1 = 0.5
    torch.testing.assert_close(x0.grad, torch.full_like(x0, 0.5), rtol=0.05, atol=0)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@directions
def test_dopri5_keeps_its_tolerance_and_agrees_with_torchdiffeq(tolerance, t0, t1):
    flow, start = GaussianFlow(), torch.randn(1, 8, dtype=torch.float64)
    begin, exact = flow.solution(start, t0), flow.solution(start, t1)
    options = {"rtol": tolerance, "atol": tolerance}
    ours = sample(flow, begin, Dopri5(safe_end=False, **options), t0=t0, t1=t1)

    def right_side(t, x):
        return flow(x, t.expand(len(x)))

    times = torch.tensor([t0, t1], dtype=torch.float64)
    theirs = odeint(right_side, begin, times, method="dopri5", **options)[-1]
    assert (ours - exact).abs().max() < 5 * tolerance
    assert (ours - theirs).abs().max() < 5 * tolerance + (theirs - exact).abs().max()


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Euler, "euler"), (Midpoint, "midpoint"), (Heun, "heun2")]
)
def test_fixed_steps_equal_torchdiffeq(ours, theirs):
    flow, x0 = GaussianFlow(), torch.randn(8, 2, dtype=torch.float64)
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    oracle = odeint(lambda t, x: flow(x, t.expand(len(x))), x0, times, method=theirs)[-1]
    mine = sample(flow, x0, ours(steps=10, safe_end=False))
    torch.testing.assert_close(mine, oracle, rtol=1e-10, atol=1e-10)


def circle(k: int = 64) -> torch.Tensor:
    angle = torch.arange(k, dtype=torch.float64) * 2 * math.pi / k
    return 2 * torch.stack([angle.cos(), angle.sin()], 1)


TARGETS = {
    "points": torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], dtype=torch.float64),
    "curve": circle(),
}
targets = pytest.mark.parametrize("points", TARGETS.values(), ids=TARGETS.keys())


@targets
def test_with_the_safe_end_heun_5_is_no_worse_than_euler_10(points):
    flow, x0 = PointsFlow(points), torch.randn(4000, 2, dtype=torch.float64)
    euler = flow.distance(sample(flow, x0, Euler(steps=10))).mean()
    heun = flow.distance(sample(flow, x0, Heun(steps=5))).mean()
    assert heun <= euler * 1.001


@targets
@pytest.mark.parametrize("solver", [Heun, RK4], ids=lambda s: s.kind)
def test_the_bare_methods_leave_noise_that_the_safe_end_does_not(solver, points):
    flow, x0 = PointsFlow(points), torch.randn(4000, 2, dtype=torch.float64)
    safe = flow.distance(sample(flow, x0, solver(steps=5))).mean()
    bare = flow.distance(sample(flow, x0, solver(steps=5, safe_end=False))).mean()
    assert bare > 2 * safe


@targets
@pytest.mark.parametrize("solver", [s for s in FIXED if s is not Euler], ids=lambda s: s.kind)
def test_no_multi_stage_solver_is_worse_than_euler_at_equal_evaluations(solver, points):
    flow, x0 = PointsFlow(points), torch.randn(4000, 2, dtype=torch.float64)
    steps = 20 // solver.stages
    euler = flow.distance(sample(flow, x0, Euler(steps=20))).mean()
    assert flow.distance(sample(flow, x0, solver(steps=steps))).mean() <= euler * 1.001


@targets
@every
def test_no_solver_asks_for_the_velocity_at_the_data_end(solver, points):
    asked = []

    def field(x, t, cond=None):
        asked.append(float(t.max()))
        return PointsFlow(points)(x, t)

    sample(field, torch.randn(16, 2, dtype=torch.float64), solver())
    assert max(asked) < 1


def test_dopri5_with_the_safe_end_lands_on_the_points():
    flow = PointsFlow(TARGETS["points"])
    x0 = torch.randn(200, 2, dtype=torch.float64)
    assert flow.distance(sample(flow, x0, Dopri5())).max() < 1e-3


def test_a_stalled_dopri5_names_the_time_and_ends():
    def wall(x, t, cond=None):
        return torch.where(t[:, None] > 0.5, float("nan"), 1.0) * torch.ones_like(x)

    with pytest.raises(Stalled, match=r"stalled at t=0\.(4|5)"):
        sample(wall, torch.zeros(2, 2), Dopri5())
    with pytest.raises(Stalled, match="3 steps were not enough"):
        sample(GaussianFlow(), torch.randn(2, 2), Dopri5(max_steps=3, rtol=1e-9, atol=1e-9))


@fixed
def test_zero_steps_are_refused(solver):
    with pytest.raises(ValueError, match="at least 1 step"):
        solver(steps=0)


def test_a_tolerance_of_zero_is_refused():
    with pytest.raises(ValueError, match="rtol > 0"):
        Dopri5(rtol=0.0)


def test_an_unknown_solver_lists_those_that_exist():
    with pytest.raises(ValueError, match=r"did you mean heun.*euler, midpoint, heun, rk4, dopri5"):
        by_name("huen")
