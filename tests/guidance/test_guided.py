"""Classifier-free guidance against its closed form; schedules and intervals of the scale."""

import math

import pytest
import torch
from guided_fields import Classes, ClassesNet, points

import flowmatch as fm
from flowmatch.flow import Flow
from flowmatch.guidance import CosineScale, CountNFE, Guided, LinearScale
from flowmatch.paths import VP, Linear, Trig
from flowmatch.solvers import RK4, Dopri5, Euler

SAME = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()], ids=repr)
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_guiding_gaussians_gives_a_gaussian(path, scale):
    x, t, cond = points()
    field = Classes(path)
    exact = field.guided(scale, cond["label"])
    torch.testing.assert_close(Guided(field, scale)(x, t, cond), exact(x, t), **SAME)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_samples_are_where_they_should_be(scale):
    x, _, cond = points(60)
    found = fm.sample(Guided(Flow(ClassesNet()), scale), x, RK4(steps=40, safe_end=False), cond)
    exact = Classes().guided(scale, cond["label"]).solution(x, 1.0)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_scales_one_and_zero_are_exact_and_one_is_free():
    x, t, cond = points()
    counted = CountNFE(Flow(ClassesNet()))
    assert torch.equal(Guided(counted, 1.0)(x, t, cond), Classes()(x, t, cond))
    assert counted.nfe == 1
    assert torch.equal(Guided(counted, 0.0)(x, t, cond), Classes()(x, t))


def test_an_interval_is_kept_by_each_sample():
    x, t, cond = points(9)  # t = 0.1, 0.2, ..., 0.9
    counted = CountNFE(Flow(ClassesNet()))
    field = Guided(counted, 3.0, interval=(0.3, 0.6))
    v, guided = field(x, t, cond), Guided(Classes(), 3.0)(x, t, cond)
    within = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
    torch.testing.assert_close(v[within], guided[within], **SAME)
    assert torch.equal(v[~within], Classes()(x, t, cond)[~within])
    assert counted.nfe == 2


def test_outside_the_interval_one_evaluation_is_enough():
    x, _, cond = points()
    counted = CountNFE(Flow(ClassesNet()))
    fm.sample(Guided(counted, 3.0, interval=(0.25, 0.55)), x, Euler(steps=10), cond)
    assert counted.nfe == 10 + 3  # t = 0.3, 0.4, 0.5


def test_with_a_step_size_of_its_own_a_sample_does_not_depend_on_its_batch():
    x, _, cond = points(5)
    x *= torch.linspace(0.1, 8, 5, dtype=torch.float64)[:, None]  # different clocks
    field = Guided(Flow(ClassesNet()), 3.0, interval=(0.2, 0.5))
    solver = Dopri5(rtol=1e-6, atol=1e-6)
    together = fm.sample(field, x, solver, cond)
    for i in range(5):
        alone = fm.sample(field, x[i : i + 1], solver, cond["label"][i : i + 1])
        # within tolerance: rounding decides how the solver's small steps meet the interval's ends
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)


def test_guidance_in_an_interval_has_its_closed_form():
    """In the middle third, the mean moves as guided; before and after, as conditional."""
    x, _, cond = points(30)
    field = Guided(Classes(), 2.0, interval=(0.25, 0.5))
    at = {"rtol": 0, "atol": 1e-6}
    found = x
    solver = RK4(steps=50, safe_end=False)
    for t0, t1 in ((0.0, 0.25 - 1e-12), (0.25, 0.5), (0.5 + 1e-12, 1.0)):
        found = fm.sample(field, found, solver, cond, t0=t0, t1=t1)

    def carried(flow, x, t0, t1):
        """The exact map from t0 to t1: back to the source, then forward."""
        zero = torch.zeros_like(x)
        shift, slope = flow.solution(zero, t0), flow.solution(zero + 1, t0)
        return flow.solution((x - shift) / (slope - shift), t1)

    plain, guided = Classes().guided(1.0, cond["label"]), Classes().guided(2.0, cond["label"])
    exact = carried(plain, carried(guided, plain.solution(x, 0.25), 0.25, 0.5), 0.5, 1.0)
    torch.testing.assert_close(found, exact, **at)


@pytest.mark.parametrize("kind", [LinearScale, CosineScale])
def test_schedules_have_their_ends_and_their_mean(kind):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    scale = kind(1.0, 4.0)(t)
    torch.testing.assert_close(scale[[0, 500, 1000]], torch.tensor([1.0, 2.5, 4.0]).double())
    assert torch.trapezoid(scale, t).item() == pytest.approx(2.5)
    assert (scale.diff() > 0).all()


def test_the_cosine_is_the_schedule_of_its_source():
    """There the weight (scale - 1) is w (1 + cos(pi s)), s the time from the data's end."""
    t, w = torch.linspace(0, 1, 11, dtype=torch.float64), 1.5
    expected = w * (1 + torch.cos(math.pi * (1 - t)))
    torch.testing.assert_close(CosineScale(1.0, 1 + 2 * w)(t) - 1, expected)
    torch.testing.assert_close(LinearScale(1.0, 1 + 2 * w)(t) - 1, 2 * w * t)


@pytest.mark.parametrize("scale", [LinearScale(1.0, 4.0), lambda t: 1 + t**2])
def test_a_scale_may_be_a_function_of_time(scale):
    x, t, cond = points()
    v_cond, v_null = Classes()(x, t, cond), Classes()(x, t)
    expected = v_null + scale(t)[:, None] * (v_cond - v_null)
    torch.testing.assert_close(Guided(Classes(), scale)(x, t, cond), expected, **SAME)
    images = x.view(6, 1, 2, 2)  # [B] against [B, C, H, W]
    found = Guided(Classes(), scale)(images, t, cond)
    torch.testing.assert_close(found.view(6, 4), expected, **SAME)
    within = Guided(Classes(), scale, interval=(0.0, 0.5))(x, t, cond)
    torch.testing.assert_close(within[:3], expected[:3], **SAME)
    assert torch.equal(within[3:], v_cond[3:])


def test_bfloat16_stays_bfloat16():
    x, t, cond = points()
    for scale in (2.0, LinearScale(1.0, 3.0)):
        for interval in ((0.0, 1.0), (0.0, 0.5)):
            v = Guided(lambda x, t, cond=None: x, scale, interval=interval)(
                x.bfloat16(), t.float(), cond
            )
            assert v.dtype == torch.bfloat16
            half = Guided(lambda x, t, cond=None: x.bfloat16(), scale, interval=interval)
            assert half(x.float(), t.float(), cond).dtype == torch.bfloat16  # as under autocast


@pytest.mark.parametrize(
    ("scale", "interval", "message"),
    [
        (math.nan, (0.0, 1.0), "finite number, got nan"),
        (math.inf, (0.0, 1.0), "finite number"),
        (2.0, (0.5, 0.5), "0 <= lo < hi <= 1, got 0.5 and 0.5"),
        (2.0, (-0.1, 0.5), "0 <= lo < hi <= 1"),
        (2.0, (0.1, 1.5), "0 <= lo < hi <= 1"),
    ],
)
def test_bad_options_are_refused(scale, interval, message):
    with pytest.raises(ValueError, match=message):
        Guided(Classes(), scale, interval=interval)
