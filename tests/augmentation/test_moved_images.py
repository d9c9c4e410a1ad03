"""Resampling against closed forms: cosines that the mirrored continuation leaves smooth."""

import math

import pytest
import torch

from flowmatch.augmentation.resampling import doubling, resample

sizes = pytest.mark.parametrize(
    ("height", "width"), [(8, 8), (14, 14), (28, 28), (32, 32), (24, 40), (7, 5)]
)
IDENTITY = [[1.0, 0.0], [0.0, 1.0]]


def noise(*shape):
    """The hardest image: all frequencies alike, in [-1, 1]."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(0)).double() - 1


def apply(x, matrix, shift=(0.0, 0.0)):
    matrix = torch.tensor(matrix, dtype=x.dtype).expand(len(x), 2, 2)
    return resample(x, matrix, torch.tensor(shift, dtype=x.dtype).expand(len(x), 2))


def centres(size):
    return torch.arange(size, dtype=torch.float64) + 0.5 - size / 2


def cosine(places, size, waves):
    """A cosine whose mirror image at the edges of `size` pixels continues it."""
    return torch.cos(math.pi * waves * (places / size + 0.5))


@pytest.mark.parametrize("size", [1, 2, 7, 8, 28, 32])
def test_halving_undoes_doubling_and_both_keep_constants(size):
    u = doubling(size, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(u.T @ u / 2, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(u.sum(1), torch.ones(2 * size, dtype=torch.float64))
    torch.testing.assert_close(u.sum(0) / 2, torch.ones(size, dtype=torch.float64))


def test_doubling_is_exact_up_to_half_of_the_highest_frequency():
    u = doubling(32, torch.float64, torch.device("cpu"))
    fine = (torch.arange(64, dtype=torch.float64) + 0.5) / 2 - 16
    for waves in range(17):
        torch.testing.assert_close(u @ cosine(centres(32), 32, waves), cosine(fine, 32, waves))


@sizes
def test_whole_pixels_shift_by_reflection(height, width):
    x = noise(4, 2, height, width)
    period = torch.cat([x, x.flip(-1)], -1)
    period = torch.cat([period, period.flip(-2)], -2)
    expected = period.roll((-2, 3), (-2, -1))[..., :height, :width]
    # what halving does not see beyond the margin: at most 1% of the strongest noise
    torch.testing.assert_close(apply(x, IDENTITY, (3.0, -2.0)), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [7, 8, 28, 32])
def test_a_quarter_turn_is_the_exact_one(size):
    x = noise(4, 2, size, size)
    y = apply(x, [[0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(y, torch.rot90(x, -1, (-2, -1)), atol=0.01, rtol=0)


def test_three_turns_by_30_degrees_blur_a_smooth_image_no_more_than_bilinear_lookup_must():
    size, waves = 32, 2
    x = (cosine(centres(size), size, waves) * cosine(centres(size)[:, None], size, waves))[
        None, None
    ]
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    y = x
    for _ in range(3):
        y = apply(y, [[c, s], [-s, c]])
    disc = centres(size).square() + centres(size)[:, None].square() < 12**2
    # h^2 / 8 w^2 an axis and turn, at the spacing h = 1/2 and the frequency w
    bound = 3 * 2 * (math.pi * waves / size) ** 2 / 32
    error = (y - torch.rot90(x, -1, (-2, -1))).abs()[0, 0]
    assert error[disc].max() < bound


@pytest.mark.parametrize("matrix", [[[0.6, 0.0], [0.0, 0.6]], [[1.5, 0.2], [-0.3, 1.2]]])
def test_a_smooth_image_follows_its_closed_form(matrix):
    height, width, shift = 24, 40, (9.3, -5.6)
    right, down = centres(width) - shift[0], centres(height)[:, None] - shift[1]
    (xx, xy), (yx, yy) = matrix
    expected = cosine(xx * right + xy * down, width, 2) * cosine(yx * right + yy * down, height, 1)
    x = cosine(centres(width), width, 2) * cosine(centres(height)[:, None], height, 1)
    # bilinear look-up at the spacing h = 1/2 of a function of frequency w: h^2 / 8 w^2 an axis;
    # and half as much for the bends of the continuation at the result's edge
    bound = 1.5 * ((2 * math.pi / width) ** 2 + (math.pi / height) ** 2) / 32
    torch.testing.assert_close(
        apply(x[None, None], matrix, shift)[0, 0], expected, atol=bound, rtol=0
    )


@pytest.mark.parametrize("waves", [29, 31])
def test_shrinking_takes_out_what_the_pixels_cannot_hold(waves):
    x = cosine(centres(32), 32, waves).expand(1, 1, 32, 32)
    assert apply(x, [[1.8, 0.0], [0.0, 1.8]]).abs().max() < 0.08  # of an amplitude of 1


def test_constants_stay_constant_under_any_map():
    matrices = torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    x = torch.full((50, 1, 8, 12), -1.0, dtype=torch.float64)
    torch.testing.assert_close(resample(x, matrices, 20 * matrices[:, 0]), x)
