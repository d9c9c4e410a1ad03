"""CFG-Zero*: the optimal multiple of the null velocity, and rest at first."""

import pytest
import torch
from guided_fields import Classes, ClassesNet, points

import flowmatch as fm
from flowmatch.flow import Flow
from flowmatch.guidance import CFGZero, CountNFE, LinearScale
from flowmatch.solvers import Euler

SAME = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("factor", [-2.0, 0.3, 5.0])
@pytest.mark.parametrize("scale", [0.0, 2.0, 7.0, LinearScale(1.0, 4.0)])
def test_a_proportional_null_velocity_guides_nowhere(factor, scale):
    """s* v_null = v_cond then, whatever the factor and the scale."""
    x, t, cond = points()

    def field(x, t, cond=None):
        v = Classes()(x, t, {"label": torch.zeros(len(x), dtype=torch.int64)})
        return v if cond is not None else factor * v

    v = CFGZero(field, scale, zero_until=0.0)(x, t, cond)
    torch.testing.assert_close(v, field(x, t, cond), **SAME)


def test_it_is_guidance_from_the_nearest_multiple():
    x, t, cond = points()
    v_cond, v_null = Classes()(x, t, cond), Classes()(x, t)
    s = torch.stack(
        [torch.linalg.lstsq(n[:, None], c).solution[0] for n, c in zip(v_null, v_cond, strict=True)]
    )[:, None]
    v = CFGZero(Flow(ClassesNet()), 2.5, zero_until=0.0)(x, t, cond)
    torch.testing.assert_close(v, s * v_null + 2.5 * (v_cond - s * v_null))
    away = (v - v_cond) / 1.5  # v_cond less its projection: orthogonal to v_null
    torch.testing.assert_close((away * v_null).sum(1), torch.zeros(6).double(), **SAME)


def test_a_null_velocity_of_zero_is_no_division_by_zero():
    x, t, cond = points()
    v = CFGZero(lambda x, t, cond=None: x * (cond is not None), 2.0)(x, t, cond)
    torch.testing.assert_close(v, 2 * x)


def test_it_rests_at_first():
    x, t, cond = points(9)
    v = CFGZero(Classes(), 2.0, zero_until=0.35)(x, t, cond)
    assert torch.equal(v[:3], torch.zeros(3, 4).double())
    torch.testing.assert_close(v[3:], CFGZero(Classes(), 2.0)(x, t, cond)[3:], **SAME)
    counted = CountNFE(Flow(ClassesNet()))
    fm.sample(CFGZero(counted, 2.0), x, Euler(steps=10), cond)
    assert counted.nfe == 18  # the first step costs nothing
    counted.nfe = 0
    fm.sample(CFGZero(counted, 2.0), x, Euler(steps=100), cond)
    assert counted.nfe == 2 * 96


def test_scale_one_is_conditional_and_one_evaluation():
    x, t, cond = points()
    counted = CountNFE(Flow(ClassesNet()))
    assert torch.equal(CFGZero(counted, 1.0)(x, t, cond), Classes()(x, t, cond))
    assert counted.nfe == 1


def test_outside_the_interval_it_is_conditional():
    x, t, cond = points(9)
    v = CFGZero(Classes(), 3.0, zero_until=0.0, interval=(0.0, 0.5))(x, t, cond)
    assert torch.equal(v[5:], Classes()(x, t, cond)[5:])
    whole = CFGZero(Classes(), 3.0, zero_until=0.0)(x, t, cond)
    torch.testing.assert_close(v[:5], whole[:5], **SAME)


def test_bad_use_is_refused():
    x, t, _ = points()
    with pytest.raises(ValueError, match="needs a condition"):
        CFGZero(Classes(), 2.0)(x, t)
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="zero_until is a time"):
            CFGZero(Classes(), 2.0, zero_until=value)
