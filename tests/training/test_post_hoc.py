"""Averages put together after a training: the mathematics, and against those tracked directly."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.integrate import quad
from torch import nn

from flowmatch.training.ema import EMA, Power, gamma_of
from flowmatch.training.post_hoc import Basis, inner_products, reconstruct
from flowmatch.training.snapshots import PostHoc, Snapshots
from flowmatch.training.weights import read_header

KEPT = (0.05, 0.1)


def profile(std, t):
    g = gamma_of(std)
    return lambda tau: (g + 1) * tau**g / t ** (g + 1) if tau <= t else 0.0


def basis(count: int, end: float = 1.0, stds=KEPT) -> tuple[Basis, list[tuple[float, float]]]:
    """Snapshots at `count` even times."""
    points = [(std, end * k / count) for k in range(1, count + 1) for std in stds]
    return Basis([s for s, _ in points], [t for _, t in points]), points


@pytest.mark.parametrize("a", [(0.05, 1.0), (0.1, 0.3), (0.28, 2.5)])
@pytest.mark.parametrize("b", [(0.05, 1.0), (0.2, 0.7)])
def test_inner_products_are_the_integrals(a, b):
    p, q = profile(*a), profile(*b)
    expected, _ = quad(lambda tau: p(tau) * q(tau), 0, min(a[1], b[1]), epsabs=0, epsrel=1e-10)
    columns = ([gamma_of(a[0])], [a[1]], [gamma_of(b[0])], [b[1]])
    got = inner_products(*(np.array(c) for c in columns))
    assert got.shape == (1, 1)
    assert got.item() == pytest.approx(expected, rel=1e-9)


def test_the_mixture_is_as_far_off_as_it_says():
    """Against the integral of the squared difference, piece by piece."""
    mixer, points = basis(6)
    mixture = mixer.mix(0.07, 0.8)
    parts = [profile(*point) for point in points]
    wanted = profile(0.07, 0.8)

    def off(tau):
        mixed = sum(c * p(tau) for c, p in zip(mixture.coefficients, parts, strict=True))
        return (mixed - wanted(tau)) ** 2

    cuts = sorted({0.0, 0.8, *(t for _, t in points)})
    squared = sum(quad(off, a, b)[0] for a, b in pairwise(cuts))
    norm, _ = quad(lambda tau: wanted(tau) ** 2, 0, 0.8)
    assert mixture.error == pytest.approx((squared / norm) ** 0.5, rel=1e-4)
    assert sum(mixture.coefficients) == pytest.approx(1, abs=1e-12)


def test_no_other_mixture_comes_closer():
    mixer, points = basis(4)
    best = mixer.mix(0.15, 1.0)
    columns = [np.array(c) for c in zip(*points, strict=True)]
    gammas = np.array([gamma_of(s) for s in columns[0]])
    gram = inner_products(gammas, columns[1], gammas, columns[1])
    target = (np.array([gamma_of(0.15)]), np.array([1.0]))
    wanted = inner_products(gammas, columns[1], *target)[:, 0]
    norm = inner_products(*target, *target).item()
    rng = np.random.default_rng(0)
    for _ in range(50):
        change = rng.normal(size=len(points)) * 1e-3
        c = np.array(best.coefficients) + change - change.mean()  # the sum stays 1
        assert norm - 2 * c @ wanted + c @ gram @ c >= best.error**2 * norm


@pytest.mark.parametrize("std", KEPT)
def test_what_was_kept_comes_back_as_it_is(std):
    mixer, points = basis(30)
    mixture = mixer.mix(std, 1.0)
    expected = [float(point == (std, 1.0)) for point in points]
    np.testing.assert_allclose(mixture.coefficients, expected, atol=1e-8)
    assert mixture.error < 1e-6


@pytest.mark.parametrize("std", [0.03, 0.075, 0.15, 0.2])
def test_more_snapshots_come_closer(std):
    errors = [basis(count)[0].mix(std, 1.0).error for count in (5, 10, 20, 40, 80)]
    assert all(b < 0.6 * a for a, b in pairwise(errors))
    assert errors[-1] < 3e-3


def test_many_snapshots_do_not_spoil_it():
    """Of 800 snapshots, all coefficients stay moderate, so that rounding does too."""
    mixture = basis(400, end=4e8)[0].mix(0.075, 4e8)
    assert mixture.error < 1e-4
    assert sum(map(abs, mixture.coefficients)) < 3


class Walk(nn.Module):
    """Weights that go a random walk, or jump about."""

    def __init__(self, steps: int, size: int, *, jumps: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(steps, size, dtype=torch.float64, generator=generator)
        self.course = noise if jumps else 100 + noise.cumsum(0)

    def go(self, step: int) -> None:
        with torch.no_grad():
            self.weight.copy_(self.course[step - 1])
            self.count.fill_(step)


def track(folder, *, every: int, steps: int = 400, batch: int = 10, jumps: bool = False, **kept):
    """Train a walk: its snapshots in a folder, and averages that were tracked directly."""
    walk = Walk(steps, 500, jumps=jumps)
    stds = (*KEPT, 0.075, 0.15, 0.2)
    averages = {Power(std=std): EMA(walk) for std in stds}
    snapshots = Snapshots(folder, PostHoc(stds=KEPT, every_steps=every, **kept))
    direct = {}
    for step in range(1, steps + 1):
        walk.go(step)
        for power, ema in averages.items():
            ema.update(power.decay_at(step, batch=batch, images=step * batch))
        if step % every == 0:
            modules = {power: ema.module for power, ema in averages.items()}
            snapshots.save(modules, step=step, images=step * batch)
            for power, ema in averages.items():
                direct[power.std, step * batch] = ema.module.weight.detach().clone()
    return direct


def off(found, direct) -> float:
    ours = found.tensors["weight"]
    return float((ours - direct).norm() / direct.norm())


@pytest.mark.parametrize("std", [0.075, 0.15])
def test_what_is_put_together_is_what_would_have_been_tracked(tmp_path, std):
    errors = []
    for every in (80, 40, 20, 10):
        (tmp_path / f"{every}").mkdir()
        direct = track(tmp_path / f"{every}", every=every)
        errors.append(off(reconstruct(tmp_path / f"{every}", std), direct[std, 4000]))
    assert all(b < a for a, b in pairwise(errors))
    assert errors[-1] < 1e-5


def test_of_weights_that_jump_about_the_error_is_the_one_that_is_told(tmp_path):
    """Weights that are independent from step to step are as far off as their profile."""
    direct = track(tmp_path, every=40, jumps=True)
    found = reconstruct(tmp_path, 0.15)
    assert 0.005 < found.error < 0.1
    assert off(found, direct[0.15, 4000]) == pytest.approx(found.error, rel=0.15)


def test_an_earlier_time(tmp_path):
    direct = track(tmp_path, every=20)
    found = reconstruct(tmp_path, 0.15, images=2400)
    assert (found.step, found.images) == (240, 2400)
    assert off(found, direct[0.15, 2400]) < 1e-3
    assert found.tensors["count"] == 240  # what cannot be averaged is of the newest


def test_an_earlier_time_has_nothing_of_later_ones(tmp_path):
    track(tmp_path, every=20)
    early = reconstruct(tmp_path, 0.1, images=600)
    for path in (tmp_path / "ema").glob("snapshot-*"):
        if int(path.name.split("-")[1].removeprefix("step")) > 60:
            path.unlink()
    alone = reconstruct(tmp_path, 0.1)
    assert (early.snapshots, early.step) == (alone.snapshots, alone.step) == (6, 60)
    assert torch.equal(early.tensors["weight"], alone.tensors["weight"])


def test_half_precision_takes_half_the_disk_and_stays_close(tmp_path):
    folders = [tmp_path / "fp32", tmp_path / "fp16"]
    for folder in folders:
        folder.mkdir()
        direct = track(folder, every=20, precision=folder.name)
    full, half = (reconstruct(folder, 0.15) for folder in folders)
    assert off(half, direct[0.15, 4000]) < 5e-4
    assert half.tensors["weight"].dtype == torch.float32
    path = next((tmp_path / "fp16/ema").iterdir())
    assert load_file(path)["weight"].dtype == torch.float16
    assert full.error == half.error


def test_what_cannot_be_put_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no snapshots.*train\.post_hoc"):
        reconstruct(tmp_path, 0.1)
    track(tmp_path, every=50)
    assert reconstruct(tmp_path, 0.04).error < 0.1
    with pytest.raises(ValueError, match=r"std0\.005 at 4,000 images cannot.* 16 snapshots.*% off"):
        reconstruct(tmp_path, 0.005)
    with pytest.raises(ValueError, match=r"Within 10% are stds from 0\.03\d* to 0\.2"):
        reconstruct(tmp_path, 0.2886)
    with pytest.raises(ValueError, match=r"of 500 to 4,000 images, got --images 4001"):
        reconstruct(tmp_path, 0.1, images=4001)
    with pytest.raises(ValueError, match=r"cannot be put together"):
        reconstruct(tmp_path, 0.05, images=3700)
    with pytest.raises(ValueError, match=r"lies in \(0, 0\.28867\]"):
        reconstruct(tmp_path, 0.3)


def test_the_file_says_what_it_is(tmp_path):
    track(tmp_path, every=50)
    found = reconstruct(tmp_path, 0.15)
    path = tmp_path / "ema" / found.file_name
    found.write(path)
    assert path.name == "std0.15-step0000400.safetensors"
    told = {"profile": "std0.15", "title": "EMA std 0.15, post-hoc"}
    assert read_header(path) == {"format": "pt", "step": "400", "images": "4000", **told}
    assert torch.equal(load_file(path)["weight"], found.tensors["weight"])
    assert reconstruct(tmp_path, 0.15).snapshots == 16  # it is none of the snapshots itself
