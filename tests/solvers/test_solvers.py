"""Contract tests over every solver: declared order, both directions, and the safe end."""

import math
from typing import get_args

import pytest
import torch
from torchdiffeq import odeint

from closed_form import GaussianFlow, MixtureFlow, PointsFlow
from flowmatch.guidance import CountNFE
from flowmatch.paths import VP, Linear, Polynomial, Trig
from flowmatch.sampling import bind, sample
from flowmatch.solvers import (
    DDIM,
    RK4,
    Adaptive,
    AnySolver,
    Dopri8,
    Euler,
    ExplicitGrid,
    FixedStep,
    GridSolver,
    Heun,
    Heun3,
    Midpoint,
    ShiftedGrid,
    by_name,
)

SOLVERS = list(get_args(AnySolver))
ON_GRID = [s for s in SOLVERS if issubclass(s, GridSolver)]
FIXED = [s for s in SOLVERS if issubclass(s, FixedStep)]
ADAPTIVE = [s for s in SOLVERS if issubclass(s, Adaptive)]
EXACT = [s for s in SOLVERS if not s.stochastic]
MULTISTEP = [s for s in ON_GRID if s not in FIXED and not s.stochastic]


def over(solvers):
    return pytest.mark.parametrize("solver", solvers, ids=lambda s: s.kind)


every, on_grid, fixed, adaptive, exact = map(over, (SOLVERS, ON_GRID, FIXED, ADAPTIVE, EXACT))
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


def warmed_up(steps: int) -> ExplicitGrid:
    """Equal steps after a few that grow from tiny ones, so that a low-order start costs nothing."""
    h, growing = 1.0, [2.0**-8]
    while sum(growing) < h:
        growing.append(sum(growing))
    sizes = [*growing, *[h] * steps]
    times = [sum(sizes[:i]) / sum(sizes) for i in range(len(sizes) + 1)]
    return ExplicitGrid(values=(0.0, *times[1:-1], 1.0))


def mirrored(grid: ExplicitGrid) -> ExplicitGrid:
    return ExplicitGrid(values=tuple(1 - t for t in reversed(grid.values)))


@over(MULTISTEP)
@pytest.mark.parametrize("path", [Linear(), Trig(), VP()], ids=lambda p: p.kind)
@pytest.mark.parametrize(("t0", "t1"), [(0.2, 0.9), (0.9, 0.2)], ids=["fwd", "bwd"])
def test_observed_order_of_multistep_methods(solver, path, t0, t1):
    flow = MixtureFlow(path=path)
    begin = torch.linspace(-2, 2, 33, dtype=torch.float64)[:, None]
    end = sample(flow, begin, Dopri8(rtol=1e-12, atol=1e-12), t0=t0, t1=t1)
    error = []
    for n in (80, 160):
        grid = warmed_up(n) if t0 < t1 else mirrored(warmed_up(n))  # a grid is walked backward
        instance = solver(steps=len(grid.values) - 1, grid=grid, safe_end=False)
        error.append((sample(flow, begin, instance, t0=t0, t1=t1) - end).abs().mean())
    assert math.log2(error[0] / error[1]) == pytest.approx(solver.order, abs=0.35)


@fixed
def test_order_holds_on_an_uneven_grid(solver):
    start = torch.linspace(0.1, 2, 32, dtype=torch.float64)[:, None]
    end, grid = logistic_solution(start, 1.0), ShiftedGrid(shift=2.0)
    coarse, fine = (
        (sample(logistic, start, solver(steps=n, grid=grid, safe_end=False)) - end).abs().mean()
        for n in (32, 64)
    )
    assert math.log2(coarse / fine) == pytest.approx(solver.order, abs=0.3)


@on_grid
def test_nfe_is_as_declared_with_and_without_the_safe_end(solver):
    x0 = torch.randn(4, 2)
    for safe in (True, False):
        for steps in (1, 2, 7):
            field, instance = CountNFE(GaussianFlow()), solver(steps=steps, safe_end=safe)
            sample(field, x0, instance)
            assert field.nfe == instance.nfe
        assert instance.nfe == 7 * solver.stages + solver.extra


@exact
def test_forward_then_backward_returns(solver):
    options = {"steps": 200} if issubclass(solver, GridSolver) else {"rtol": 1e-8, "atol": 1e-8}
    instance = solver(safe_end=False, **options)
    x0 = torch.randn(8, 2, dtype=torch.float64)
    x1 = sample(GaussianFlow(), x0, instance)
    back = sample(GaussianFlow(), x1, instance, t0=1.0, t1=0.0)
    torch.testing.assert_close(back, x0, rtol=0, atol=0.05 if solver.order == 1 else 2e-3)


@every
def test_the_trajectory_ends_exactly_and_equals_integrate(solver):
    x0 = torch.randn(4, 2)
    states = list(solver().trajectory(bind(GaussianFlow()), x0))
    assert states[-1][0] == 1.0
    if not solver.stochastic:
        end = sample(GaussianFlow(), x0, solver())
        torch.testing.assert_close(states[-1][1], end, rtol=0, atol=0)


@every
def test_an_empty_way_costs_nothing(solver):
    x0, counted = torch.randn(4, 2), CountNFE(GaussianFlow())
    for t in (0.0, 0.3, 1.0):
        end = sample(counted, x0, solver(), t0=t, t1=t, path=Linear())
        torch.testing.assert_close(end, x0, rtol=0, atol=0)
    assert counted.nfe == 0


@every
def test_a_sample_does_not_depend_on_its_batch(solver):
    x0 = torch.randn(16, 2)
    x0[3] *= 20  # a hard neighbour must not change the others' steps
    together = sample(GaussianFlow(), x0, solver(), seeds=range(16), stream=3)
    alone = sample(GaussianFlow(), x0[5:6], solver(), seeds=[5], stream=3)
    torch.testing.assert_close(together[5:6], alone, rtol=1e-5, atol=1e-6)


@exact
def test_gradients_flow_through_the_integration(solver):
    x0 = torch.randn(4, 2, requires_grad=True)
    solver().integrate(bind(GaussianFlow()), x0).sum().backward()
    assert x0.grad is not None
    assert x0.grad.isfinite().all()
    # the flow map contracts by std / 1 = 0.5
    torch.testing.assert_close(x0.grad, torch.full_like(x0, 0.5), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Euler, "euler"), (Midpoint, "midpoint"), (Heun, "heun2"), (Heun3, "heun3")],
    ids=lambda s: s if isinstance(s, str) else "",
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
@over([s for s in ON_GRID if s is not Euler and not s.stochastic])
def test_no_solver_is_worse_than_euler_at_equal_evaluations(solver, points):
    flow, x0 = PointsFlow(points), torch.randn(4000, 2, dtype=torch.float64)
    instance = solver(steps=20 // solver.stages)
    euler = Euler(steps=instance.steps * solver.stages)
    least = flow.distance(sample(flow, x0, euler)).mean()
    assert flow.distance(sample(flow, x0, instance)).mean() <= least * 1.001 + 1e-6


@targets
@every
def test_no_solver_asks_for_the_velocity_at_the_data_end(solver, points):
    asked = []

    def field(x, t, cond=None):
        asked.append(float(t.max()))
        return PointsFlow(points)(x, t)

    sample(field, torch.randn(16, 2, dtype=torch.float64), solver(), path=Linear())
    assert max(asked) < 1


def test_ddim_is_euler_on_the_linear_path_alone():
    x0 = torch.randn(8, 2, dtype=torch.float64)
    for path, same in ((Linear(), True), (Trig(), False)):
        flow = GaussianFlow(path=path)
        a, b = (sample(flow, x0, s(steps=7)) for s in (Euler, DDIM))
        assert torch.allclose(a, b, atol=1e-12) == same


@on_grid
def test_any_path_from_its_very_beginning_to_its_very_end(solver):
    x0 = torch.randn(64, 2, dtype=torch.float64)
    paths = (Linear(), Trig(), Polynomial(n=2.0), VP())
    for path in paths:
        flow = GaussianFlow(path=path)
        x1 = sample(flow, x0, solver(steps=40), seeds=range(64))
        assert x1.isfinite().all()
        if not solver.stochastic:
            torch.testing.assert_close(x1, flow.solution(x0, 1.0), rtol=0, atol=0.15)


@over([s for s in ON_GRID if s.needs_path])
def test_a_solver_on_a_path_says_when_nobody_knows_it(solver):
    with pytest.raises(ValueError, match=f"{solver.kind} needs the affine path"):
        sample(logistic, torch.randn(4, 1), solver(steps=3))
    sample(logistic, torch.rand(4, 1), solver(steps=3), path=Linear())


@on_grid
def test_zero_steps_are_refused(solver):
    with pytest.raises(ValueError, match="at least 1 step"):
        solver(steps=0)


def test_an_unknown_solver_lists_those_that_exist():
    with pytest.raises(ValueError, match=r"did you mean heun.*euler, midpoint, heun, ralston"):
        by_name("huen")
