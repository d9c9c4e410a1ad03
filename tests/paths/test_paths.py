"""Contract tests over every path: a new one is tested because it is in the union."""

from typing import get_args

import pytest
import torch

from flowmatch.paths import VP, AffinePath, Linear, PathConfig, Polynomial, Preconditioned, Trig
from flowmatch.paths.affine import Prediction

PATHS = [member() for member in get_args(get_args(PathConfig)[0])] + [Polynomial(n=3.0)]
KINDS = (*get_args(Prediction), Preconditioned(sigma_data=0.7))
paths = pytest.mark.parametrize("path", PATHS, ids=repr)


@pytest.fixture
def batch():
    x0 = torch.randn(64, 3, 2, dtype=torch.float64)
    x1 = torch.randn(64, 3, 2, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 64, dtype=torch.float64)
    return x0, x1, t


@paths
def test_the_path_runs_from_source_to_data(path, batch):
    x0, x1, t = batch
    # the VP path keeps 0.66% of the data at t=0, as the field's diffusion models do
    at_source = 0.02 if isinstance(path, VP) else 1e-12
    torch.testing.assert_close(path.xt(x0, x1, torch.zeros_like(t)), x0, atol=at_source * 3, rtol=0)
    torch.testing.assert_close(path.xt(x0, x1, torch.ones_like(t)), x1, atol=1e-12, rtol=0)


@paths
def test_signal_grows_and_noise_shrinks(path):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (path.alpha(t).diff() > 0).all()
    assert (path.sigma(t).diff() < 0).all()


@paths
def test_the_target_is_the_time_derivative(path, batch):
    x0, x1, t = batch
    h = 1e-6
    slope = (path.xt(x0, x1, t + h) - path.xt(x0, x1, t - h)) / (2 * h)
    torch.testing.assert_close(path.target(x0, x1, t), slope, rtol=1e-6, atol=1e-7)


@paths
def test_closed_form_derivatives_equal_autograd(path):
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(path.d_alpha(t), AffinePath.d_alpha(path, t))
    torch.testing.assert_close(path.d_sigma(t), AffinePath.d_sigma(path, t))


@paths
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_conversions_between_true_predictions_are_exact(path, source, to, batch):
    x0, x1, t = batch
    xt = path.xt(x0, x1, t)
    converted = path.convert(path.target(x0, x1, t, source), xt, t, source=source, to=to)
    torch.testing.assert_close(converted, path.target(x0, x1, t, to), rtol=1e-9, atol=1e-9)


@paths
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_conversions_round_trip(path, source, to, batch):
    x0, _, t = batch
    xt, prediction = torch.randn_like(x0), torch.randn_like(x0)
    there = path.convert(prediction, xt, t, source=source, to=to)
    back = path.convert(there, xt, t, source=to, to=source)
    torch.testing.assert_close(back, prediction, rtol=1e-8, atol=1e-8)


@paths
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_error_scale_is_how_an_error_grows_under_conversion(path, source, to, batch):
    x0, x1, t = batch
    xt, error = path.xt(x0, x1, t), torch.randn_like(x0)
    truth = path.target(x0, x1, t, source)
    grown = path.convert(truth + error, xt, t, source=source, to=to) - path.convert(
        truth, xt, t, source=source, to=to
    )
    expected = path.error_scale(t, source=source, to=to)[:, None, None] * error.abs()
    torch.testing.assert_close(grown.abs(), expected, rtol=1e-6, atol=1e-8)


def test_a_new_path_needs_two_functions_only(batch):
    class Cubic(AffinePath):
        def alpha(self, t):
            return 3 * t**2 - 2 * t**3

        def sigma(self, t):
            return 1 - self.alpha(t)

    x0, x1, t = batch
    path = Cubic()
    h = 1e-6
    slope = (path.xt(x0, x1, t + h) - path.xt(x0, x1, t - h)) / (2 * h)
    torch.testing.assert_close(path.target(x0, x1, t), slope, rtol=1e-6, atol=1e-7)


def test_known_values():
    t = torch.tensor([0.25], dtype=torch.float64)
    x0, x1 = torch.tensor([[2.0]]).double(), torch.tensor([[6.0]]).double()
    assert Linear().xt(x0, x1, t).item() == 3.0
    assert Linear().target(x0, x1, t).item() == 4.0
    assert Linear().target(x0, x1, t, "score").item() == pytest.approx(-2 / 0.75)
    assert Trig().error_scale(t, source="velocity", to="x1").item() == pytest.approx(
        torch.cos(torch.pi / 2 * t).item() / (torch.pi / 2)
    )
    # Song et al. 2021: log alpha(s) = -s^2 (beta_max - beta_min) / 4 - s beta_min / 2
    s = 0.75
    assert VP().alpha(t).log().item() == pytest.approx(-(s**2) * 19.9 / 4 - s * 0.1 / 2)


def test_the_linear_x1_to_velocity_weight_is_one_over_left_squared():
    t = torch.tensor([0.5, 0.9])
    scale = Linear().error_scale(t, source="x1", to="velocity")
    torch.testing.assert_close(scale, torch.tensor([2.0, 10.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(beta_min=3, beta_max=1), "beta_min < beta_max"),
        (lambda: Polynomial(n=0.5), "n >= 1, got 0.5"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_prediction_is_refused(batch):
    x0, x1, t = batch
    with pytest.raises(ValueError, match="none of velocity, x1, x0, score"):
        Linear().target(x0, x1, t, "epsilon")


@paths
def test_the_time_of_a_ratio_inverts_the_ratio(path):
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(path.time_of_ratio(path.ratio(t)), t, rtol=0, atol=1e-12)
    found = path.time_of_ratio(torch.tensor([torch.inf, 1e9, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=2e-3)
