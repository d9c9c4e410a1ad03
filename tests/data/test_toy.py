"""Toy densities: size, spread, and the marks by which each is known."""

from __future__ import annotations

import math

import pytest
import torch

from flowmatch.data import TOYS, Digits, Toy, toy
from flowmatch.randomness import keyed_generator


@pytest.mark.parametrize("name", TOYS)
def test_points_fill_the_usual_frame(name):
    points = TOYS[name](20_000, generator=keyed_generator(name))
    assert points.shape == (20_000, 2)
    assert points.dtype == torch.float32
    assert points.abs().quantile(0.999) < 4.5
    assert ((points.std(dim=0) > 0.8) & (points.std(dim=0) < 2.5)).all()
    assert (points.mean(dim=0).abs() < 0.1).all()
    assert torch.equal(points, TOYS[name](20_000, generator=keyed_generator(name)))


def test_without_a_generator_each_draw_is_new():
    assert not torch.equal(toy.moons(8), toy.moons(8))


def test_the_checkerboard_fills_its_dark_fields_evenly():
    points = toy.checkerboard(16_000)
    column, row = ((points + 4) / 2).floor().long().unbind(1)
    assert ((column + row) % 2 == 0).all()
    counts = torch.bincount(4 * column + row, minlength=16).reshape(4, 4)
    assert (counts[counts > 0].float() - 2_000).abs().max() < 200
    assert (counts > 0).sum() == 8


def test_the_eight_gaussians_lie_on_a_circle():
    points = toy.eight_gaussians(16_000)
    angle = torch.atan2(points[:, 1], points[:, 0])
    nearest = (angle / (math.pi / 4)).round().long() % 8
    for k in range(8):
        centre = torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)]) * math.sqrt(8)
        assert (points[nearest == k].mean(dim=0) - centre).norm() < 0.1


def test_the_splits_and_seeds_are_independent():
    everything = torch.arange(50)
    one, other, again = (
        Toy(name="spirals", samples=50, seed=seed).build(split).plain(everything).x1
        for seed, split in ((0, "train"), (0, "test"), (1, "train"))
    )
    assert not torch.equal(one, other)
    assert not torch.equal(one, again)


def test_impossible_toys_are_refused():
    with pytest.raises(ValueError, match="name must be one of moons, 8gaussians"):
        Toy(name="moon")
    with pytest.raises(ValueError, match="samples must be at least 1"):
        Toy(name="moons", samples=0)


def test_digits_have_all_classes_in_both_splits_and_none_twice():
    train, test = Digits().build(), Digits().build("test")
    for dataset in (train, test):
        assert len(dataset.plain(torch.arange(len(dataset))).cond["label"].unique()) == 10
    assert Digits(image_size=32).build("test").shape == (1, 32, 32)
    with pytest.raises(ValueError, match="must be 8, 16 or 32"):
        Digits(image_size=28)
