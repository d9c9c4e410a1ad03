"""From data to noise and back, against the known map."""

import pytest
import torch

from closed_form import GaussianFlow
from flowmatch.likelihood import invert
from flowmatch.solvers import DDIM, RK4, Dopri5, Heun


def test_the_latent_of_a_gaussian_flow():
    x0 = torch.randn(8, 2, 3, dtype=torch.float64)
    x1 = GaussianFlow().solution(x0, 1.0)
    found = invert(GaussianFlow(), x1, Dopri5(rtol=1e-8, atol=1e-8, safe_end=False))
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.x1_again, x1, rtol=0, atol=1e-6)
    assert found.error.shape == (8,)
    assert found.error.max() < 1e-6


def test_the_error_is_of_what_was_sampled_and_falls_with_the_steps():
    x1 = GaussianFlow().solution(torch.randn(8, 3, dtype=torch.float64), 1.0)
    errors = []
    for steps in (4, 16, 64):
        found = invert(GaussianFlow(), x1, Heun(steps=steps))
        torch.testing.assert_close(found.error, (found.x1_again - x1).square().mean(1).sqrt())
        errors.append(found.error.mean())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_conditions_and_times_reach_the_field():
    def field(x, t, cond):
        assert (t <= 0.5).all()
        return cond["label"][:, None].expand_as(x).to(x.dtype)

    x1, labels = torch.zeros(2, 3), torch.tensor([1, 4])
    found = invert(field, x1, RK4(steps=2), labels, t1=0.5)
    torch.testing.assert_close(found.x0[:, 0], -labels / 2)
    torch.testing.assert_close(found.x1_again, x1)


def test_a_solver_that_needs_the_path_is_refused():
    with pytest.raises(ValueError, match="steps along the path"):
        invert(GaussianFlow(), torch.zeros(1, 2), DDIM(steps=2))
