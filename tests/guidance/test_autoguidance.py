"""Autoguidance: its formula, with and without a condition, and what it refuses."""

import pytest
import torch
from guided_fields import Classes, ClassesNet, points

import flowmatch as fm
from closed_form import GaussianFlow
from flowmatch.flow import Flow
from flowmatch.guidance import AutoGuided, CountNFE, Guided, LinearScale
from flowmatch.networks import MLP
from flowmatch.paths import Trig
from flowmatch.solvers import RK4

SAME = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, LinearScale(0.5, 3.0)])
def test_with_a_condition_both_fields_see_it(scale):
    x, t, cond = points()
    main, weak = Classes(std=0.5), Classes(std=0.9)
    v, v_weak = main(x, t, cond), weak(x, t, cond)
    s = scale(t)[:, None] if callable(scale) else scale
    found = AutoGuided(main, weak, scale)(x, t, cond)
    torch.testing.assert_close(found, v_weak + s * (v - v_weak), **SAME)


def test_without_a_condition_samples_are_where_they_should_be():
    """Gaussians of one std: guiding from mean 0.5 to 1.5 by 2 leads to mean 2.5."""
    x = torch.randn(40, 3, dtype=torch.float64)
    field = AutoGuided(GaussianFlow(mean=1.5), GaussianFlow(mean=0.5), 2.0)
    found = fm.sample(field, x, RK4(steps=40, safe_end=False))
    torch.testing.assert_close(found, GaussianFlow(mean=2.5).solution(x, 1.0), rtol=0, atol=1e-5)


def test_an_interval_is_kept_by_each_sample():
    x, t, _ = points(9)
    main, weak = CountNFE(GaussianFlow(mean=1.0)), CountNFE(GaussianFlow(mean=0.0))
    field = AutoGuided(main, weak, 3.0, interval=(0.25, 0.65))
    v = field(x, t)
    assert torch.equal(v[[0, 1, 6, 7, 8]], main.field(x, t)[[0, 1, 6, 7, 8]])
    torch.testing.assert_close(v[2:6], GaussianFlow(mean=3.0)(x, t)[2:6], **SAME)
    assert (main.nfe, weak.nfe) == (1, 1)
    field(x, torch.full_like(t, 0.9))
    assert (main.nfe, weak.nfe) == (2, 1)


def test_scale_one_never_asks_the_weak_field():
    x, t, _ = points()
    weak = CountNFE(GaussianFlow())
    assert torch.equal(AutoGuided(GaussianFlow(), weak, 1.0)(x, t), GaussianFlow()(x, t))
    assert weak.nfe == 0


def test_it_goes_around_other_guidance():
    x, t, cond = points()
    strong = Guided(Flow(ClassesNet()), 2.0)
    v = AutoGuided(strong, Classes(), 1.5)(x, t, cond)
    v_weak = Classes()(x, t, cond)
    torch.testing.assert_close(v, v_weak + 1.5 * (strong(x, t, cond) - v_weak), **SAME)


@pytest.mark.parametrize(
    ("weak", "message"),
    [
        (Flow(MLP(5, num_classes=3), shape=(5,)), r"shape is \(5,\), but the guided one's is \(4,"),
        (Flow(MLP(4, num_classes=2), shape=(4,)), "number of classes is 2, but .* is 3"),
        (Flow(MLP(4), shape=(4,)), "number of classes is None, but .* is 3"),
        (Flow(MLP(4, num_classes=3), shape=(4,), path=Trig()), "path is Trig"),
    ],
)
def test_a_weak_model_of_other_data_is_refused(weak, message):
    flow = Flow(MLP(4, num_classes=3), shape=(4,))
    with pytest.raises(ValueError, match=message):
        AutoGuided(flow, weak, 2.0)
    with pytest.raises(ValueError, match=message):  # through other fields, too
        AutoGuided(CountNFE(flow), CountNFE(weak), 2.0)


def test_a_weak_model_of_the_same_data_passes():
    flow = Flow(MLP(4, num_classes=3), shape=(4,))
    AutoGuided(flow, Flow(MLP(4, width=8, num_classes=3), shape=(4,)), 2.0)
    AutoGuided(flow, Flow(MLP(4, num_classes=3)), 2.0)  # a shape that nobody gave
