"""Crops against arithmetic done by hand, on images whose pixels tell where they come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling

from flowmatch.data.transforms import AdmCentre, AdmRandom, ShortSide
from made_data import make_celeba, save


def coordinates(width: int, height: int) -> Image.Image:
    """An image whose red channel is the column and whose green channel is the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def corner(image: Image.Image) -> tuple[int, int]:
    """Column and row of the first pixel."""
    return image.getpixel((0, 0))[:2]


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 32), (0, 0)), ((40, 32), (4, 0)), ((32, 51), (0, 9))]
)
def test_centre_crop_of_images_that_need_no_resizing(size, expected):
    for transform in (ShortSide(size=32), AdmCentre(size=32)):
        image = transform.plain(coordinates(*size))
        assert image.size == (32, 32)
        assert corner(image) == expected


def test_the_celeba_window_is_centred_on_the_face(tmp_path):
    config = make_celeba(tmp_path)
    image = coordinates(178, 218)
    save(tmp_path / "img_align_celeba/000001.png", image)
    (tmp_path / "list_eval_partition.txt").write_text("000001.png 0\n")
    window = replace(config, image_size=128).build().raw(torch.tensor([0]), None).x1[0]
    assert window[0, 0].tolist() == list(range(89 - 64, 89 + 64))  # columns
    assert window[1, :, 0].tolist() == list(range(121 - 64, 121 + 64))  # rows
    half = replace(config, image_size=64).build().raw(torch.tensor([0]), None).x1[0]
    assert (half[0, 0, 1:-1] - torch.arange(27.5, 151, 2)).abs().max() <= 1  # no shift


def test_adm_centre_crop_halves_first():
    image = coordinates(200, 130)
    halved = image.resize((100, 65), Resampling.BOX)
    scaled = halved.resize((round(100 * 64 / 65), 64), Resampling.BICUBIC)
    left = (scaled.width - 64) // 2
    expected = scaled.crop((left, 0, left + 64, 64))
    assert AdmCentre(size=64).plain(image).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("uniforms", "scaled", "expected"),
    [
        ((0.0, 0.0, 0.0, 0.0), 32, (0, 0)),
        ((0.0, 0.999, 0.0, 0.0), 40, (0, 0)),
        ((0.0, 0.999, 0.999, 0.0), 40, (0, 8)),
        ((0.0, 0.999, 0.5, 0.999), 40, (18, 4)),
    ],
)
def test_adm_random_crop_follows_its_draws(uniforms, scaled, expected):
    image = coordinates(50, 40)
    crop = AdmRandom(size=32).augmented(image, uniforms)
    whole = image.resize((round(50 * scaled / 40), scaled), Resampling.BICUBIC)
    left, top = expected
    assert crop.tobytes() == whole.crop((left, top, left + 32, top + 32)).tobytes()


def test_every_random_crop_lies_inside():
    image = Image.new("L", (61, 47), 255)  # a crop beyond the border would show black
    draws = np.random.default_rng(0).random((200, 4))
    draws[0] = 1 - 2**-24
    transform = AdmRandom(size=32)
    for uniforms in draws.tolist():
        crop = transform.augmented(image, uniforms)
        assert crop.size == (32, 32)
        assert crop.getextrema() == (255, 255)
    assert transform.plain(image).tobytes() == AdmCentre(size=32).plain(image).tobytes()


def test_shrinking_does_not_alias():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    low, high = ShortSide(size=16).plain(stripes).getextrema()
    assert high - low < 40
