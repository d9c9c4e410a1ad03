"""Sampling takes any callable field; guidance and counting are fields around fields."""

import pytest
import torch

import flowmatch as fm
from closed_form import GaussianFlow
from flowmatch.solvers import Euler, Heun


def test_any_callable_is_a_field():
    x1 = fm.sample(lambda x, t, cond=None: torch.ones_like(x), torch.zeros(3, 2), Euler(steps=4))
    torch.testing.assert_close(x1, torch.ones(3, 2))


def test_a_gaussian_comes_out_as_it_should():
    field = GaussianFlow(mean=1.5, std=0.5)
    x1 = fm.sample(field, torch.randn(20_000, 1), Heun(steps=20))
    assert x1.mean().item() == pytest.approx(1.5, abs=0.02)
    assert x1.std().item() == pytest.approx(0.5, abs=0.02)


def test_backward_maps_data_to_noise():
    field = GaussianFlow()
    x0 = torch.randn(64, 2, dtype=torch.float64)
    x1 = field.solution(x0, 1.0)
    back = fm.sample(field, x1, Heun(steps=100), t0=1.0, t1=0.0)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-3)


def test_labels_reach_the_field_bare_or_by_name():
    def field(x, t, cond):
        return cond["label"][:, None].float().expand_as(x)

    labels = torch.tensor([1, 5])
    for cond in (labels, {"label": labels}):
        x1 = fm.sample(field, torch.zeros(2, 3), Euler(steps=2), cond)
        torch.testing.assert_close(x1[:, 0], labels.float())


def conditional(x, t, cond=None):
    return torch.full_like(x, 1.0 if cond is None else 3.0)


@pytest.mark.parametrize(("scale", "velocity", "nfe"), [(0, 1, 8), (1, 3, 4), (2, 5, 8)])
def test_guidance(scale, velocity, nfe):
    counted = fm.CountNFE(conditional)
    guided = fm.Guided(counted, scale)
    x1 = fm.sample(guided, torch.zeros(2, 1), Euler(steps=4), torch.tensor([0, 1]))
    torch.testing.assert_close(x1, torch.full((2, 1), float(velocity)))
    assert counted.nfe == nfe


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(ValueError, match="needs a condition"):
        fm.sample(fm.Guided(conditional, 2.0), torch.zeros(2, 1), Euler(steps=1))


def test_load_gives_a_field(trained):
    flow = fm.load(trained)
    x, t = torch.randn(4, *flow.shape), torch.rand(4)
    assert flow(x, t).shape == x.shape
    torch.testing.assert_close(flow(x, t), flow(x, t, torch.full((4,), 10)))  # 10: the null class
    assert not flow.training
    live = fm.load(trained, weights="model")
    assert not torch.equal(live(x, t), flow(x, t))
    older = fm.load(trained / "ckpt/step0000003")
    assert not torch.equal(older(x, t), flow(x, t))


def test_the_readme_of_the_library_in_ten_lines():
    flow = fm.Flow(fm.networks.MLP(dim=2, width=64), path=fm.paths.Linear())
    loss = fm.losses.FlowMatching(time=fm.times.Uniform(), coupling=fm.couplings.Independent())
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    for _ in range(1000):
        optimizer.zero_grad()
        loss(flow, fm.data.toy.moons(256)).backward()
        optimizer.step()
    x1 = fm.sample(flow, torch.randn(500, 2), fm.solvers.Heun(steps=20))
    moons = fm.data.toy.moons(5000)
    nearest = torch.cdist(x1, moons).min(1).values
    of_noise = torch.cdist(torch.randn(500, 2), moons).min(1).values
    assert nearest.mean() < 0.4 * of_noise.mean()


def test_times_lie_between_noise_and_data():
    x = torch.zeros(2, 2)
    for times in ({"t1": 2.0}, {"t0": float("nan")}, {"t0": -0.1}):
        with pytest.raises(ValueError, match=r"times lie in \[0, 1\]"):
            fm.sample(GaussianFlow(), x, Euler(steps=2), **times)
    for density in (fm.log_prob, fm.invert):
        with pytest.raises(ValueError, match="lies before t1; got 1 and 0"):
            density(GaussianFlow(), x, t0=1.0, t1=0.0)


def test_a_condition_belongs_to_its_batch():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"label has shape \(3,\) for a batch of 4"):
        fm.sample(GaussianFlow(), x, Euler(steps=2), torch.arange(3))
    for wrong in ([0, 1, 2, 3], 3, {"label": [0, 1, 2, 3]}):
        with pytest.raises(TypeError, match=r"write torch\.tensor"):
            fm.sample(GaussianFlow(), x, Euler(steps=2), wrong)


def test_a_solvers_name_is_no_solver():
    with pytest.raises(TypeError, match=r"must be a Solver such as .* got 'heun'"):
        fm.sample(GaussianFlow(), torch.randn(2, 2), "heun")
