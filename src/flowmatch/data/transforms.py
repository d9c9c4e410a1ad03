"""From an image of any size to a square of the wanted size: resizing and cropping with Pillow.

Pillow filters over the whole footprint of a target pixel when it shrinks, i.e. without aliasing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from PIL.Image import Resampling

from flowmatch.data.errors import ImageError

ADM_LEAST_CROP = 0.8  # a random crop shows at least this part of the short side


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """Makes a `size` x `size` image of an 8-bit one.

    Args:
        size: side of the result in pixels.
        upsample: accept images that are smaller than `size` and enlarge them.
    """

    size: int
    upsample: bool = False

    random: ClassVar[bool] = False
    """Whether `augmented` differs from `plain`, so that decoding once is not enough."""

    @abstractmethod
    def plain(self, image: Image.Image) -> Image.Image:
        """The image to evaluate on."""

    def augmented(self, image: Image.Image, uniforms: Sequence[float]) -> Image.Image:
        """The image to train on, given the four uniform numbers of the sample."""
        return self.plain(image)

    def check(self, name: str, size: tuple[int, int]) -> None:
        """Raise ImageError if an image of this (width, height) cannot be used."""
        if min(size) < self.size and not self.upsample:
            raise ImageError(
                name,
                "{}x{}".format(*size),
                problem=f"smaller than image_size {self.size}",
                remedy="lower image_size, remove such images, or set upsample: true",
            )


@dataclass(frozen=True, kw_only=True)
class ShortSide(Transform):
    """Resize so that the short side is `size`, then crop the centre."""

    resample: Resampling = Resampling.BICUBIC

    def plain(self, image: Image.Image) -> Image.Image:
        return crop_centre(resize_short_side(image, self.size, self.resample), self.size)


@dataclass(frozen=True, kw_only=True)
class Window(Transform):
    """Crop a fixed `box` (left, top, right, bottom) of images of one known size, then resize."""

    box: tuple[int, int, int, int]
    expected: tuple[int, int]
    resample: Resampling = Resampling.BILINEAR

    def plain(self, image: Image.Image) -> Image.Image:
        return image.crop(self.box).resize((self.size, self.size), self.resample)

    def check(self, name: str, size: tuple[int, int]) -> None:
        if size != self.expected:
            raise ImageError(
                name,
                "{}x{}".format(*size),
                problem="not {}x{} (width x height)".format(*self.expected),
                remedy="use the aligned and cropped release of the data set",
            )


@dataclass(frozen=True, kw_only=True)
class AdmCentre(Transform):
    """Halve by box filter while that leaves enough, then bicubic to `size`, then crop the centre.

    Source: Dhariwal & Nichol 2021 (ADM), the preprocessing of their ImageNet models.
    """

    def plain(self, image: Image.Image) -> Image.Image:
        return crop_centre(shrink_by_halves(image, self.size), self.size)


@dataclass(frozen=True, kw_only=True)
class AdmRandom(AdmCentre):
    """Short side to a random length from `size` to `size` / 0.8, then a random window.

    Source: Dhariwal & Nichol 2021 (ADM), the random crop of their classifiers.
    """

    random: ClassVar[bool] = True

    def augmented(self, image: Image.Image, uniforms: Sequence[float]) -> Image.Image:
        _, scale, down, right = uniforms
        longest = math.ceil(self.size / ADM_LEAST_CROP)
        image = shrink_by_halves(image, self.size + int(scale * (longest - self.size + 1)))
        width, height = image.size
        left = int(right * (width - self.size + 1))
        top = int(down * (height - self.size + 1))
        return image.crop((left, top, left + self.size, top + self.size))


def resize_short_side(image: Image.Image, side: int, resample: Resampling) -> Image.Image:
    """Resize to a short side of `side` pixels, keeping the aspect ratio."""
    short = min(image.size)
    if short == side:
        return image
    width, height = (max(side, round(length * side / short)) for length in image.size)
    return image.resize((width, height), resample)


def shrink_by_halves(image: Image.Image, side: int) -> Image.Image:
    """Halve by box filter while the short side is at least 2 `side`, then bicubic to `side`."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    return resize_short_side(image, side, Resampling.BICUBIC)


def crop_centre(image: Image.Image, side: int) -> Image.Image:
    """The `side` x `side` window in the middle of an image that is at least that large."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
