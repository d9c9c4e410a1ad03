"""Adaptive solvers: tolerance, dense output, a clock for each sample, and how they give up."""

from typing import get_args

import pytest
import torch
from torchdiffeq import odeint

from closed_form import GaussianFlow, PointsFlow
from flowmatch.sampling import bind, sample
from flowmatch.solvers import Adaptive, AnySolver, Dopri5, Stalled

ADAPTIVE = [s for s in get_args(AnySolver) if issubclass(s, Adaptive)]
adaptive = pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.kind)
directions = pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)], ids=["fwd", "bwd"])


@adaptive
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@directions
def test_adaptive_solvers_keep_their_tolerance_and_agree_with_torchdiffeq(
    solver, tolerance, t0, t1
):
    flow, start = GaussianFlow(), torch.randn(1, 8, dtype=torch.float64)
    begin, exact = flow.solution(start, t0), flow.solution(start, t1)
    options = {"rtol": tolerance, "atol": tolerance}
    ours = sample(flow, begin, solver(safe_end=False, **options), t0=t0, t1=t1)

    def right_side(t, x):
        return flow(x, t.expand(len(x)))

    times = torch.tensor([t0, t1], dtype=torch.float64)
    theirs = odeint(right_side, begin, times, method=solver.kind, **options)[-1]
    allowed = {"bosh3": 20, "dopri5": 5, "dopri8": 5}[solver.kind] * tolerance
    assert (ours - exact).abs().max() < allowed
    assert (ours - theirs).abs().max() < allowed + (theirs - exact).abs().max()


@adaptive
@directions
def test_dense_output_is_as_good_as_the_steps(solver, t0, t1):
    flow, start = GaussianFlow(), torch.randn(16, 3, dtype=torch.float64)
    start[4] *= 30  # a sample with other steps than its neighbours
    times = [t0, 0.1, 0.15, 0.5, 0.77, 0.9995, t1]
    instance = solver(rtol=1e-8, atol=1e-8, safe_end=False)
    states = instance.at(bind(flow), flow.solution(start, t0), times, t0=t0, t1=t1)
    for t, x in zip(times, states, strict=True):
        torch.testing.assert_close(x, flow.solution(start, t), rtol=1e-5, atol=1e-5)


def test_dense_output_reaches_into_the_safe_end_and_refuses_what_lies_outside():
    flow, start = GaussianFlow(), torch.randn(4, 3, dtype=torch.float64)
    states = Dopri5().at(bind(flow), start, [0.9995, 1.0])
    torch.testing.assert_close(states[0], flow.solution(start, 0.9995), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(states[1], sample(flow, start, Dopri5()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="between t=0 and t=1"):
        Dopri5().at(bind(flow), start, [1.5])


@adaptive
@directions
def test_dense_output_at_the_steps_own_times_is_the_steps(solver, t0, t1):
    flow, start = GaussianFlow(), torch.randn(1, 3, dtype=torch.float64)
    begin = flow.solution(start, t0)
    steps = list(solver(safe_end=False).trajectory(bind(flow), begin, t0=t0, t1=t1))
    times = torch.tensor([t for t, _ in steps], dtype=torch.float64)
    states = solver(safe_end=False).at(bind(flow), begin, times, t0=t0, t1=t1)
    torch.testing.assert_close(states, torch.stack([x for _, x in steps]), rtol=1e-9, atol=1e-9)


@adaptive
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_a_state_in_half_precision_is_carried_in_float32(solver, dtype):
    flow, x0 = GaussianFlow(), torch.randn(64, 2)

    def field(x, t, cond=None):
        assert x.dtype == dtype
        return flow(x.float(), t).to(dtype)

    x1 = sample(field, x0.to(dtype), solver(rtol=1e-3, atol=1e-3))
    assert x1.dtype == dtype
    torch.testing.assert_close(x1.float(), sample(flow, x0, solver()), rtol=0, atol=0.03)
    dense = solver(rtol=1e-3, atol=1e-3).at(bind(field), x0.to(dtype), [0.0, 1.0])
    assert dense.dtype == dtype
    torch.testing.assert_close(dense[1], x1, rtol=0, atol=0)


def test_an_empty_batch_and_an_empty_way_cost_nothing():
    asked = []

    def field(x, t, cond=None):
        asked.append(t)
        return x

    assert sample(field, torch.empty(0, 2), Dopri5(safe_end=False)).shape == (0, 2)
    assert torch.equal(sample(field, torch.ones(3, 2), Dopri5(), t1=0.0), torch.ones(3, 2))
    assert not asked


def test_samples_without_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"takes samples \[B, \*D\], got shape \(4,\)"):
        sample(GaussianFlow(), torch.randn(4), Dopri5())


def test_a_field_that_is_not_finite_is_named_with_its_sample():
    def broken(x, t, cond=None):
        return torch.where(x > 0, float("nan"), x)

    with pytest.raises(Stalled, match=r"t=0 in sample 1 .*not finite there"):
        sample(broken, torch.tensor([[-1.0], [1.0], [-2.0]]), Dopri5())


@adaptive
def test_adaptive_solvers_with_the_safe_end_land_on_the_points(solver):
    flow = PointsFlow(torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], dtype=torch.float64))
    x0 = torch.randn(200, 2, dtype=torch.float64)
    assert flow.distance(sample(flow, x0, solver())).max() < 1e-3


def test_a_stalled_dopri5_names_the_time_and_ends():
    def wall(x, t, cond=None):
        return torch.where(t[:, None] > 0.5, float("nan"), 1.0) * torch.ones_like(x)

    with pytest.raises(Stalled, match=r"stalled at t=0\.(4|5).*not finite there") as stalled:
        sample(wall, torch.zeros(2, 2), Dopri5())
    assert "max_steps" not in str(stalled.value)
    with pytest.raises(Stalled, match="3 steps were not enough; raise max_steps"):
        sample(GaussianFlow(), torch.randn(2, 2), Dopri5(max_steps=3, rtol=1e-9, atol=1e-9))


def test_a_tolerance_below_what_the_numbers_have_is_told_from_a_field_that_is_lost():
    with pytest.raises(Stalled, match="fell to the resolution of time; loosen rtol=1e-30"):
        sample(GaussianFlow(), torch.randn(2, 2), Dopri5(rtol=1e-30, atol=1e-30))


@adaptive
def test_a_tolerance_that_is_not_positive_is_refused(solver):
    with pytest.raises(ValueError, match=f"{solver.kind} needs finite rtol > 0"):
        solver(rtol=0.0)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="atol > 0"):
            solver(atol=bad)
