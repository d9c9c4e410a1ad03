"""EDM's preconditioning: unit variance in and out, and the published coefficients."""

from typing import get_args

import pytest
import torch
from torch import nn

from closed_form import GaussianFlow
from flowmatch.flow import Flow
from flowmatch.paths import Linear, PathConfig, Preconditioned

PATHS = [member() for member in get_args(get_args(PathConfig)[0])]
paths = pytest.mark.parametrize("path", PATHS, ids=repr)
T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)


def coefficients(path, sigma_data):
    kind = Preconditioned(sigma_data=sigma_data)
    alpha, sigma = path.alpha(T), path.sigma(T)
    return alpha, sigma, kind.input_scale(alpha, sigma), *kind.weights(alpha, sigma)


@paths
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_input_and_prediction_have_variance_one_and_the_prediction_is_new(path, sigma_data):
    alpha, sigma, scale, c1, c0 = coefficients(path, sigma_data)
    one = torch.ones_like(T)
    variance = (alpha * sigma_data) ** 2 + sigma**2  # of xt, for x1 of variance sigma_data^2
    torch.testing.assert_close(scale**2 * variance, one)
    torch.testing.assert_close((c1 * sigma_data) ** 2 + c0**2, one)
    covariance = alpha * c1 * sigma_data**2 + sigma * c0
    torch.testing.assert_close(covariance, torch.zeros_like(T), rtol=0, atol=1e-12)


def test_the_coefficients_are_those_of_the_paper():
    """Table 1 of Karras et al. 2022, where x = x1 + sigma x0, against the linear path."""
    sd = 0.5
    kind, path = Preconditioned(sigma_data=sd), Linear()
    s = (1 - T) / T
    c_skip = sd**2 / (s**2 + sd**2)
    c_out = s * sd / (s**2 + sd**2).sqrt()
    c_in = 1 / (s**2 + sd**2).sqrt()
    f = torch.randn(len(T), 3, dtype=torch.float64)
    xt = torch.randn(len(T), 3, dtype=torch.float64)
    x = xt / T[:, None]  # on the paper's path
    denoised = c_skip[:, None] * x + c_out[:, None] * f
    found = path.convert(f, xt, T, source=kind, to="x1")
    torch.testing.assert_close(found, denoised)
    scale = kind.input_scale(path.alpha(T), path.sigma(T))
    torch.testing.assert_close(scale[:, None] * xt, c_in[:, None] * x)
    weight = (s**2 + sd**2) / (s * sd) ** 2
    torch.testing.assert_close(path.error_scale(T, source="x1", to=kind) ** 2, weight)


@paths
def test_an_exact_network_is_an_exact_flow(path):
    field, kind = GaussianFlow(path=path), Preconditioned(sigma_data=0.8)

    class Exact(nn.Module):
        num_classes = None

        def forward(self, x, t, cond=None):
            scale = kind.input_scale(path.alpha(t), path.sigma(t))[:, None]
            xt = x / scale  # what the flow scaled
            return path.convert(field(xt, t), xt, t, source="velocity", to=kind)

    flow = Flow(Exact(), path=path, predict=kind)
    x = torch.randn(len(T), 2, dtype=torch.float64)
    torch.testing.assert_close(flow(x, T), field(x, T), rtol=1e-9, atol=1e-9)


def test_both_ends_are_determined():
    """Unlike x1 and x0, the prediction says what the velocity is at t=0 and at t=1."""
    network = nn.Identity()
    network.forward = lambda x, t, cond=None: x
    flow, x = Flow(network, predict=Preconditioned()), torch.randn(2, 3)
    assert flow(x, torch.tensor([0.0, 1.0])).isfinite().all()
    assert flow._held is None


def test_a_negative_sigma_data_is_refused():
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        Preconditioned(sigma_data=-1)
