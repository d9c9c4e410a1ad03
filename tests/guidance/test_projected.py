"""Adaptive projected guidance: identities of the projection, the limit and the momentum."""

from typing import get_args

import pytest
import torch
from guided_fields import Classes, ClassesNet, points

import flowmatch as fm
from flowmatch.flow import Flow
from flowmatch.guidance import APG, CountNFE, Guided, LinearScale
from flowmatch.guidance.momentum import Momentum
from flowmatch.paths import Linear, PathConfig, Polynomial
from flowmatch.solvers import Euler, Heun

SAME = {"rtol": 1e-12, "atol": 1e-12}
PATHS = [member() for member in get_args(get_args(PathConfig)[0])]


def update(field, path, x, t, cond, scale):
    """What was added to D_cond, over `scale - 1`, and D_cond: both as predictions of x1."""
    v = field(x, t, cond)
    d, d_cond = (
        path.convert(u, x, t, source="velocity", to="x1") for u in (v, Classes(path)(x, t, cond))
    )
    return (d - d_cond) / (scale - 1), d_cond


def difference(path, x, t, cond):
    """D_cond - D_null."""
    d_cond, d_null = (
        path.convert(Classes(path)(x, t, c), x, t, source="velocity", to="x1") for c in (cond, None)
    )
    return d_cond - d_null


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("scale", [0.0, 3.0, LinearScale(1.0, 4.0)])
def test_with_the_parallel_part_and_nothing_else_it_is_plain_guidance(path, scale):
    x, t, cond = points()
    field = Classes(path)
    v = APG(field, scale, path, eta=1.0)(x, t, cond)
    torch.testing.assert_close(v, Guided(field, scale)(x, t, cond), **SAME)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_without_the_parallel_part_it_is_orthogonal_to_the_prediction(path):
    x, t, cond = points()
    d, d_cond = update(APG(Classes(path), 3.0, path), path, x, t, cond, 3.0)
    torch.testing.assert_close((d * d_cond).sum(1), torch.zeros(6).double(), rtol=0, atol=1e-9)
    full = difference(path, x, t, cond)
    rest = full - d  # what was left out is parallel: it loses nothing by projection
    onto = (rest * d_cond).sum(1, keepdim=True) / (d_cond**2).sum(1, keepdim=True) * d_cond
    torch.testing.assert_close(rest, onto, rtol=1e-8, atol=1e-9)


def test_eta_weighs_the_parallel_part():
    x, t, cond = points()
    none, all_, some = (
        APG(Classes(), 3.0, Linear(), eta=eta)(x, t, cond) for eta in (0.0, 1.0, 0.25)
    )
    torch.testing.assert_close(some, none + 0.25 * (all_ - none), **SAME)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_norm_is_kept_below_its_limit(path):
    x, t, cond = points()
    full = difference(path, x, t, cond)
    limit = full.norm(dim=1).median().item()
    field = APG(Classes(path), 3.0, path, eta=1.0, norm_threshold=limit)
    d, _ = update(field, path, x, t, cond, 3.0)
    expected = full * (limit / full.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(d, expected, rtol=1e-8, atol=1e-9)
    assert (d.norm(dim=1) <= limit * (1 + 1e-9)).all()


def test_equal_predictions_are_no_division_by_zero():
    x, t, cond = points()
    field = APG(lambda x, t, cond=None: x, 3.0, Linear(), norm_threshold=1.0, momentum=-0.5)
    torch.testing.assert_close(field(x, t, cond), x)
    t = torch.zeros_like(t)
    zero = APG(lambda x, t, cond=None: -x if cond else x, 3.0, Linear())  # D_cond = 0 at t=0
    torch.testing.assert_close(zero(x, t, cond), -x + 2 * (-2 * x))


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("time", [0.0, 1.0])
def test_the_ends_are_finite(path, time):
    x, t, cond = points()
    field = APG(
        lambda x, t, cond=None: 2 * x + 1 if cond else x.clone(),
        3.0,
        path,
        norm_threshold=1.0,
        momentum=-0.5,
    )
    for now in (t * 0.99, torch.full_like(t, time)):  # with and without a memory
        assert field(x, now, cond).isfinite().all()


def test_where_nothing_is_known_of_x1_guidance_is_plain():
    x, _, cond = points()
    t = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    field = APG(Classes(), 3.0, Polynomial(), momentum=-0.5)
    plain = Guided(Classes(), 3.0)(x, t, cond)
    v = field(x, t, cond)
    torch.testing.assert_close(v[:3], plain[:3], **SAME)
    assert not torch.allclose(v[3:], plain[3:])
    later = field(x, t + 0.25, cond)  # t=0 left nothing behind
    fresh = APG(Classes(), 3.0, Polynomial(), momentum=-0.5)(x, t + 0.25, cond)
    torch.testing.assert_close(later[:3], fresh[:3], **SAME)


def test_momentum_is_a_running_sum_of_predictions():
    x, _, cond = points()
    field, total = APG(Classes(), 3.0, Linear(), eta=1.0, momentum=-0.5), torch.zeros_like(x)
    for time in (0.1, 0.2, 0.4, 0.7):
        t = torch.full((6,), time, dtype=torch.float64)
        total = difference(Linear(), x, t, cond) - 0.5 * total
        d, _ = update(field, Linear(), x, t, cond, 3.0)
        torch.testing.assert_close(d, total, rtol=1e-9, atol=1e-10)


def test_momentum_begins_anew_with_each_trajectory():
    x, _, cond = points()
    field = APG(Flow(ClassesNet()), 3.0, Linear(), momentum=-0.7)
    for solver in (Euler(steps=1), Euler(steps=5), Heun(steps=4)):
        first = fm.sample(field, x, solver, cond)
        assert torch.equal(fm.sample(field, x, solver, cond), first)
        half = fm.sample(field, x[:3], solver, cond["label"][:3])
        torch.testing.assert_close(half, first[:3], **SAME)
    still = APG(Flow(ClassesNet()), 3.0, Linear())
    assert not torch.allclose(fm.sample(still, x, Euler(steps=5), cond), first)


def test_an_evaluation_at_the_same_time_replaces_the_last():
    memory, d, t = Momentum(0.5), torch.ones(2, 1), torch.tensor([0.1, 0.1])
    assert memory.add(d, t).flatten().tolist() == [1, 1]
    assert memory.add(d, torch.tensor([0.1, 0.2])).flatten().tolist() == [1, 1.5]
    assert memory.add(3 * d, torch.tensor([0.3, 0.2])).flatten().tolist() == [3.5, 3.5]
    assert memory.add(d, torch.tensor([0.2, 0.4])).flatten().tolist() == [1, 2.75]
    assert memory.add(d[:1], torch.tensor([0.9])).flatten().tolist() == [1]


def test_memory_keeps_no_graph():
    x, _, cond = points()
    field = APG(Classes(), 3.0, Linear(), momentum=-0.5)
    for time in (0.2, 0.4, 0.2):
        y = x.clone().requires_grad_()
        field(y, torch.full((6,), time, dtype=torch.float64), cond).sum().backward()
        assert y.grad.isfinite().all()


def test_what_is_outside_the_interval_leaves_nothing_behind():
    x, _, cond = points()
    field = APG(Classes(), 3.0, Linear(), momentum=-0.5, interval=(0.3, 0.8))
    counted = CountNFE(Classes())
    early = torch.tensor([0.1, 0.1, 0.1, 0.35, 0.35, 0.35], dtype=torch.float64)
    v = field(x, early, cond)
    assert torch.equal(v[:3], Classes()(x, early, cond)[:3])
    now = torch.full_like(early, 0.5)
    fresh = APG(counted, 3.0, Linear(), momentum=-0.5, interval=(0.3, 0.8))
    v, alone = field(x, now, cond), fresh(x, now, cond)
    torch.testing.assert_close(v[:3], alone[:3], **SAME)
    assert not torch.allclose(v[3:], alone[3:])
    fresh(x, torch.full_like(now, 0.9), cond)
    assert counted.nfe == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": float("nan")}, "eta must be a finite number"),
        ({"norm_threshold": 0.0}, "norm_threshold must be positive"),
        ({"norm_threshold": float("inf")}, "leave it out for no limit"),
        ({"momentum": -1.0}, r"momentum must be in \(-1, 1\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        APG(Classes(), 2.0, Linear(), **options)


def test_a_condition_is_needed():
    x, t, _ = points()
    with pytest.raises(ValueError, match="needs a condition"):
        APG(Classes(), 2.0, Linear())(x, t)
