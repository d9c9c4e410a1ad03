"""Distances against their formulas, and as losses."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowmatch.flow import Flow
from flowmatch.losses import DistanceConfig, FlowMatching, Huber, PseudoHuber, Squared
from flowmatch.paths import Linear

DISTANCES = [member() for member in get_args(get_args(DistanceConfig)[0])]
every = pytest.mark.parametrize("distance", DISTANCES, ids=repr)


@every
def test_small_errors_count_as_their_mean_square(distance):
    error = 1e-4 * torch.randn(8, 3, 4, dtype=torch.float64)
    expected = (error**2).mean((1, 2))
    torch.testing.assert_close(distance(error), expected, rtol=1e-4, atol=0)


@every
def test_large_errors_count_at_most_as_their_mean_square(distance):
    error = 100 * torch.randn(8, 5, dtype=torch.float64)
    assert (distance(error) <= (error**2).mean(1) * (1 + 1e-12)).all()
    assert (distance(2 * error) > distance(error)).all()


@every
def test_the_gradient_at_no_error_is_zero(distance):
    error = torch.zeros(2, 3, requires_grad=True)
    distance(error).sum().backward()
    assert torch.equal(error.grad, torch.zeros(2, 3))


def test_huber_is_twice_the_huber_loss():
    error = torch.randn(16, 7, dtype=torch.float64) * 3
    expected = 2 * F.huber_loss(error, torch.zeros_like(error), delta=1.7, reduction="none")
    torch.testing.assert_close(Huber(delta=1.7)(error), expected.mean(1))


def test_pseudo_huber_is_the_published_one_up_to_scale():
    dims, c = 12, 0.00054
    error = torch.randn(16, dims, dtype=torch.float64)
    norm, published = error.norm(dim=1), c * dims**0.5  # equation 11, and its c = 0.00054 sqrt(d)
    expected = (norm**2 + published**2).sqrt() - published
    torch.testing.assert_close(PseudoHuber(c=c)(error), expected * 2 * c / dims**0.5)


@every
def test_the_error_is_measured_in_the_space_asked_for(distance):
    """distance(v error), where x1 is predicted: the same as converting and then measuring."""
    network = nn.Identity()
    network.forward = lambda x, t, cond=None: 0.3 * x
    flow, path = Flow(network, predict="x1"), Linear()
    x0, x1 = torch.randn(2, 32, 5, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 32, dtype=torch.float64)
    xt = path.xt(x0, x1, t)
    v = path.convert(0.3 * xt, xt, t, source="x1", to="velocity")
    expected = distance(v - (x1 - x0))
    loss = FlowMatching(distance=distance, max_weight=1e9)
    torch.testing.assert_close(loss.per_sample(flow, x0, x1, t), expected)


@pytest.mark.parametrize("build", [lambda: Huber(delta=0), lambda: PseudoHuber(c=-1)])
def test_bad_options_are_refused(build):
    with pytest.raises(ValueError, match="> 0"):
        build()


def test_squared_is_the_mean_square():
    error = torch.randn(4, 3)
    torch.testing.assert_close(Squared()(error), (error**2).mean(1))
