"""The flow-matching loss against its closed form on Gaussians."""

from typing import get_args

import pytest
import torch
from torch import nn

from closed_form import GaussianFlow
from flowmatch.flow import Flow
from flowmatch.losses import Draws, FlowMatching
from flowmatch.paths import Linear, PathConfig
from flowmatch.paths.affine import Prediction
from flowmatch.times import LogitNormal

PATHS = [member() for member in get_args(get_args(PathConfig)[0])]


class Exact(nn.Module):
    """The optimal predictor of a Gaussian flow, as a network of any prediction kind."""

    num_classes = None

    def __init__(self, field, kind="velocity", offset=0.0):
        super().__init__()
        self.field, self.kind, self.offset = field, kind, offset

    def forward(self, x, t, cond=None):
        v = self.field(x, t)
        out = self.field.path.convert(v, x, t, source="velocity", to=self.kind)
        return out + self.offset


def fixed_time(n, t):
    return torch.full((n,), t, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_the_minimum_is_the_exact_velocity(path, t):
    field, n = GaussianFlow(path=path), 200_000
    x0 = torch.randn(n, 1, dtype=torch.float64)
    x1 = field.mean + field.std * torch.randn(n, 1, dtype=torch.float64)
    # regress the target on xt: the loss's minimum among affine predictors
    xt, target = path.xt(x0, x1, fixed_time(n, t)), path.target(x0, x1, fixed_time(n, t))
    design = torch.cat([xt, torch.ones_like(xt)], 1)
    slope, offset = torch.linalg.lstsq(design, target).solution[:, 0]
    probe = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    exact = field(probe, fixed_time(3, t))
    torch.testing.assert_close(slope * probe + offset, exact, rtol=0.02, atol=0.03)
    flow = Flow(Exact(field), path=path)
    best = FlowMatching().per_sample(flow, x0, x1, fixed_time(n, t)).mean()
    worse = FlowMatching().per_sample(
        Flow(Exact(field, offset=0.1), path=path), x0, x1, fixed_time(n, t)
    )
    assert worse.mean().item() == pytest.approx(best.item() + 0.01, rel=0.05)


@pytest.mark.parametrize("predict", get_args(Prediction))
def test_a_flow_is_the_same_velocity_whatever_its_network_predicts(predict):
    field = GaussianFlow()
    flow = Flow(Exact(field, predict), predict=predict)
    x, t = (
        torch.randn(16, 3, dtype=torch.float64),
        torch.linspace(0.01, 0.99, 16, dtype=torch.float64),
    )
    torch.testing.assert_close(flow(x, t), field(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("predict", get_args(Prediction))
@pytest.mark.parametrize("space", get_args(Prediction))
def test_the_loss_of_a_space_is_the_loss_of_a_network_that_predicts_it(predict, space):
    """Predicting p and measuring q equals converting the prediction and measuring it."""
    field = GaussianFlow()
    x0 = torch.randn(64, 5, dtype=torch.float64)
    x1 = field.mean + field.std * torch.randn(64, 5, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    flow = Flow(Exact(field, predict, offset=0.2), predict=predict)
    xt = Linear().xt(x0, x1, t)
    converted = Linear().convert(flow.prediction(xt, t), xt, t, source=predict, to=space)
    expected = ((converted - Linear().target(x0, x1, t, space)) ** 2).mean(1)
    loss = FlowMatching(space=space, max_weight=1e12)
    torch.testing.assert_close(loss.per_sample(flow, x0, x1, t), expected, rtol=1e-8, atol=1e-10)


def test_the_weight_is_cut():
    loss = FlowMatching(max_weight=400)
    flow = Flow(nn.Identity(), predict="x1")
    weight = loss.weight(flow, torch.tensor([0.5, 0.95, 0.999]))
    torch.testing.assert_close(weight, torch.tensor([4.0, 400.0, 400.0]))


def test_space_prediction_weighs_nothing():
    flow = Flow(nn.Identity(), predict="x1")
    assert torch.equal(FlowMatching(space="prediction").weight(flow, torch.rand(4)), torch.ones(4))


def test_given_pairs_draw_no_coupling():
    seen = []

    class Spy(nn.Module):
        num_classes = None

        def forward(self, x, t, cond=None):
            seen.append((x, t))
            return torch.zeros_like(x)

    x0, x1 = torch.randn(8, 2), torch.randn(8, 2)
    draws = Draws.like(x1)
    loss = FlowMatching(time=LogitNormal())(Flow(Spy()), x1, x0=x0, draws=draws)
    x, t = seen[0]
    torch.testing.assert_close(x, Linear().xt(x0, x1, t))
    torch.testing.assert_close(t, LogitNormal().quantile(draws.time))
    torch.testing.assert_close(loss, ((x1 - x0) ** 2).mean())


def test_labels_are_dropped_one_by_one():
    seen = []

    class Spy(nn.Module):
        num_classes = 10

        def forward(self, x, t, cond=None):
            seen.append(cond["label"])
            return torch.zeros_like(x)

    labels, x1 = torch.arange(4000) % 10, torch.randn(4000, 2)
    draws = Draws.like(x1)
    FlowMatching(label_dropout=0.25)(Flow(Spy()), x1, labels, draws=draws)
    dropped = seen[0] == 10
    assert torch.equal(dropped, draws.drop < 0.25)
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    assert 0.2 < dropped.float().mean() < 0.3


def test_label_dropout_needs_a_null_class():
    flow = Flow(nn.Identity())
    with pytest.raises(ValueError, match=r"network\.num_classes"):
        FlowMatching(label_dropout=0.1)(flow, torch.randn(4, 2), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"label_dropout": 1.5}, "share"), ({"max_weight": 0.0}, "positive")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FlowMatching(**options)
