"""A flow reads every kind of prediction as a velocity, at the ends of time too."""

import math

import pytest
import torch
from torch import nn

import flowmatch as fm
from closed_form import GaussianFlow
from flowmatch.paths import VP, Linear, Polynomial, Trig
from flowmatch.tensors import expand_like

PATHS = (Linear(), Trig(), VP(), Polynomial())


class Predictor(nn.Module):
    """The exact prediction of one kind for a Gaussian flow, in the form that a network learns."""

    num_classes = None

    def __init__(self, field: GaussianFlow, kind: str) -> None:
        super().__init__()
        self.field, self.kind = field, kind

    def forward(self, x, t, cond=None):
        path, mean, std = self.field.path, self.field.mean, self.field.std
        alpha, sigma = (expand_like(c, x) for c in (path.alpha(t), path.sigma(t)))
        off, variance = x - alpha * mean, alpha**2 * std**2 + sigma**2
        if self.kind == "x1":
            return mean + alpha * std**2 / variance * off
        return sigma / variance * off if self.kind == "x0" else -off / variance


@pytest.mark.parametrize("kind", ["x1", "x0", "score"])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.kind)
def test_every_prediction_is_sampled_from_end_to_end_and_back(path, kind):
    field = GaussianFlow(path=path)
    flow = fm.Flow(Predictor(field, kind), path=path, predict=kind)
    x0 = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    exact = field.solution(x0, 1.0)
    for solver in (fm.solvers.Heun(steps=50), fm.solvers.UniPC(steps=50), fm.solvers.Dopri5()):
        torch.testing.assert_close(fm.sample(flow, x0, solver), exact, rtol=0, atol=0.03)
    back = fm.invert(flow, exact, fm.solvers.Heun(steps=100))
    torch.testing.assert_close(back.x0, x0, rtol=0, atol=0.03)


def test_only_near_an_open_end_a_velocity_is_held():
    field = GaussianFlow()
    t = torch.tensor([0.0, 1e-6, 0.005, 0.01, 0.5, 0.99, 0.995, 1 - 1e-6, 1.0], dtype=torch.float64)
    x = torch.randn(len(t), 2, dtype=torch.float64)
    for kind, held in (("x1", (0.0, 0.99)), ("x0", (0.01, 1.0)), ("score", (0.01, 0.99))):
        flow = fm.Flow(Predictor(field, kind), predict=kind)
        exact = field(x, t.clamp(*held))
        torch.testing.assert_close(flow(x, t), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", [*PATHS, Polynomial(4.0)], ids=str)
@pytest.mark.parametrize("kind", ["x1", "x0", "score"])
def test_data_of_any_width_are_reached_with_less_than_a_step_of_a_pixel_of_noise(path, kind):
    x0 = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    for std in (1e-3, 0.02, 0.5):
        field = GaussianFlow(mean=0.0, std=std, path=path)
        flow = fm.Flow(Predictor(field, kind), path=path, predict=kind)
        x1 = fm.sample(flow, x0, fm.solvers.Dopri5(rtol=1e-6, atol=1e-6))
        left = (x1[1] - x1[0]).item() / 2
        assert left == pytest.approx(std, rel=0.02, abs=2 / 255)


class Wild(torch.nn.Module):
    """Predicts data as no posterior does: near t=1 it does not leave alone what is clean."""

    def forward(self, x, t, cond=None):
        return (3 * x).sin()


def test_an_imperfect_prediction_of_data_is_followed_by_adaptive_steps_both_ways():
    flow, x0 = fm.Flow(Wild(), predict="x1"), torch.randn(4, 3)
    x1 = fm.sample(flow, x0, fm.solvers.Dopri5())
    torch.testing.assert_close(x1, (3 * x1).sin(), rtol=0, atol=0.02)  # what it leaves alone
    back = fm.sample(flow, x1, fm.solvers.Dopri5(rtol=1e-6, atol=1e-6), t0=1.0, t1=0.0)
    again = fm.sample(flow, back, fm.solvers.Dopri5(rtol=1e-6, atol=1e-6))
    torch.testing.assert_close(again, x1, rtol=0, atol=1e-3)
    assert fm.log_prob(flow, x1, fm.solvers.Dopri5()).isfinite().all()


def test_an_open_end_is_that_of_its_prediction():
    x = torch.ones(1, 1, dtype=torch.float64)
    inside = Linear().time_of_ratio(torch.tensor([99.0, 1 / 99], dtype=torch.float64)).tolist()
    assert inside == pytest.approx([0.01, 0.99], abs=1e-14)
    ends = dict(zip((0.0, 1.0), inside, strict=True))
    for kind, open_ends in (("x0", {0.0}), ("x1", {1.0}), ("score", {0.0, 1.0})):
        seen = []

        class Watching(Predictor):
            def forward(self, x, t, cond=None, seen=seen):
                seen.append(t.item())
                return super().forward(x, t)

        flow = fm.Flow(Watching(GaussianFlow(), kind), predict=kind)
        for end in ends:
            assert math.isfinite(flow(x, end).item())
        assert seen == [ends[end] if end in open_ends else end for end in ends]


class Doubled:
    """Makes images of one channel of 2 x 2 pixels, each twice its latent."""

    shape, weights = (1, 2, 2), "0"

    def __call__(self, x):
        return 2 * x[..., None, None].expand(-1, 1, 2, 2)


def test_samples_are_decoded_where_they_are_latents():
    x = torch.randn(3, 1)
    latents = fm.Flow(nn.Identity(), shape=(1,), decoder=Doubled())
    assert (latents.shape, latents.decoded_shape) == ((1,), (1, 2, 2))
    assert torch.equal(latents.decode(x), Doubled()(x))
    assert not list(latents.parameters())
    assert not latents.state_dict()
    points = fm.Flow(nn.Identity(), shape=(1,))
    assert points.decoded_shape == (1,)
    assert points.decode(x) is x
