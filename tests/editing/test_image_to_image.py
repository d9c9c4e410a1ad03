"""SDEdit and interpolation, on flows in closed form."""

import math

import pytest
import torch
from correlated_gaussian import CorrelatedGaussian

import flowmatch as fm
from closed_form import GaussianFlow
from flowmatch.editing import interpolate, sdedit, slerp
from flowmatch.paths import VP, Linear, Trig
from flowmatch.solvers import DDIM, EulerMaruyama, Heun

X = torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("path", [Linear(), Trig()], ids=lambda p: p.kind)
def test_the_strength_goes_from_the_image_to_a_sample(path):
    field = CorrelatedGaussian(path=path)
    assert torch.equal(sdedit(field, X, 0.0, seeds=range(6)), X)
    x0 = fm.noise(range(6), (1, 4, 4), stream=2).double()
    fresh = sdedit(field, X, 1.0, Heun(steps=10), seeds=range(6), stream=2)
    torch.testing.assert_close(fresh, fm.sample(field, x0, Heun(steps=10)))
    far = [(sdedit(field, X, s, seeds=range(6)) - X).square().mean() for s in (0.1, 0.3, 0.6, 1.0)]
    assert far == sorted(far)


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()], ids=lambda p: p.kind)
def test_sdedit_is_the_exact_map_from_the_noised_image(path):
    field = GaussianFlow(mean=1.5, std=0.5, path=path)
    t = torch.tensor(0.4, dtype=torch.float64)
    xt = path.xt(fm.noise(range(6), (1, 4, 4)).double(), X, t.expand(6))
    start = field.solution(torch.zeros(1).double(), 0.4)
    slope = field.solution(torch.ones(1).double(), 0.4) - start
    exact = field.solution((xt - start) / slope, 1.0)
    x1 = sdedit(field, X, 0.6, Heun(steps=400), seeds=range(6))
    torch.testing.assert_close(x1, exact, rtol=0, atol=5e-3)


def test_an_edit_depends_on_its_seed_and_image_alone():
    field = CorrelatedGaussian()
    for solver in (Heun(steps=5), EulerMaruyama(steps=5)):
        together = sdedit(field, X, 0.5, solver, seeds=(4, 2, 0, 8, 6, 1), stream=3)
        alone = sdedit(field, X[3:4], 0.5, solver, seeds=(8,), stream=3)
        torch.testing.assert_close(together[3:4], alone)


def test_slerp_keeps_lengths_and_angles():
    a, b = torch.randn(5, 3, 4, 4).double(), 2 * torch.randn(5, 3, 4, 4).double()
    u, v = a.flatten(1), b.flatten(1)
    angle = torch.acos(torch.cosine_similarity(u, v))
    for w in (0.0, 0.25, 0.7, 1.0):
        c = slerp(a, b, w).flatten(1)
        torch.testing.assert_close(c.norm(dim=1), (1 - w) * u.norm(dim=1) + w * v.norm(dim=1))
        torch.testing.assert_close(
            torch.acos(torch.cosine_similarity(u, c).clamp(-1, 1)), w * angle, rtol=0, atol=1e-7
        )
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, torch.linspace(0, 1, 5))[4], b[4])


def test_slerp_of_nearly_and_exactly_parallel_vectors_is_the_line():
    a = torch.tensor([[1.0, 0.0]]).double()
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    for step in (1e-3, 1e-9, 1e-15):
        near = torch.tensor([[math.cos(step), math.sin(step)]], dtype=torch.float64)
        middle = slerp(a, near, 0.25)
        assert middle[0, 1].item() == pytest.approx(math.sin(0.25 * step), rel=1e-9)


@pytest.mark.parametrize("path", [Linear(), Trig(), VP()], ids=lambda p: p.kind)
def test_interpolation_ends_at_its_images_and_follows_the_arc(path):
    field = GaussianFlow(mean=0.0, std=0.5, path=path)  # the map is a scaling of x0
    a, b = X[:3], X[3:]
    rows = interpolate(field, a, b, 5, Heun(steps=200))
    assert rows.shape == (3, 5, 1, 4, 4)
    torch.testing.assert_close(rows[:, 0], a, rtol=0, atol=2e-3)
    torch.testing.assert_close(rows[:, -1], b, rtol=0, atol=2e-3)
    for i, w in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        torch.testing.assert_close(rows[:, i], slerp(a, b, w), rtol=0, atol=5e-3)


def test_interpolation_of_a_pair_is_its_own():
    field = CorrelatedGaussian()
    rows = interpolate(field, X[:3], X[3:], 4, Heun(steps=10))
    alone = interpolate(field, X[1:2], X[4:5], 4, Heun(steps=10))
    torch.testing.assert_close(rows[1:2], alone)
    on_path = interpolate(field, X[:3], X[3:], 4, DDIM(steps=400))
    torch.testing.assert_close(on_path[:, 0], X[:3], rtol=0, atol=0.05)


def test_labels_of_a_pair_go_with_its_images():
    seen = []

    def field(x, t, cond=None):
        seen.append(cond["label"].tolist())
        return torch.zeros_like(x)

    interpolate(field, X[:2], X[2:4], 3, Heun(steps=1), torch.tensor([4, 7]))
    assert seen[0] == [4, 7, 4, 7]
    assert seen[-1] == [4, 4, 4, 7, 7, 7]


MISTAKES = {
    "strength": (lambda f: sdedit(f, X, 1.2, seeds=range(6)), r"in \[0, 1\], got 1.2"),
    "seeds": (lambda f: sdedit(f, X, 0.5, seeds=range(5)), "5 seeds for 6 images"),
    "shapes": (lambda f: interpolate(f, X[:2], X[:3]), "must be equal"),
    "one image": (lambda f: interpolate(f, X[:2], X[2:4], 1), "at least 2, got 1"),
    "time": (lambda f: interpolate(f, X[:2], X[2:4], data_time=0), r"in \(0, 1\], got 0"),
    "noise": (lambda f: interpolate(f, X[:2], X[2:4], 3, EulerMaruyama()), "may not add noise"),
}


@pytest.mark.parametrize(("act", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act(CorrelatedGaussian())
