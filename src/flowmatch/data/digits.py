"""The 8x8 handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL.Image import Resampling

from flowmatch.component import Component
from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.decoded import decode_all
from flowmatch.data.source import ArraySource
from flowmatch.data.transforms import ShortSide
from flowmatch.randomness import keyed_generator

TRAIN_FRACTION = 0.8


@dataclass(frozen=True, kw_only=True)
class Digits(Component):
    """Digits 0 to 9 in grey: 1,437 images to train on and 360 to test on. Never flipped.

    Pixels from 0 to 16 become round(255 * pixel / 16). The split is drawn once and for all.

    Args:
        image_size: 8, or 16 or 32 by bilinear enlargement.
    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI).
    """

    image_size: Literal[8, 16, 32] = 8
    kind: Literal["digits"] = "digits"

    def __post_init__(self) -> None:
        if self.image_size not in (8, 16, 32):
            raise ValueError(f"image_size of the digits must be 8, 16 or 32: {self.image_size}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (1, self.image_size, self.image_size)

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = torch.randperm(len(digits.images), generator=keyed_generator("digits", "split"))
        count = int(TRAIN_FRACTION * len(order))
        rows = order[:count] if split == "train" else order[count:]
        images = (digits.images[rows.numpy()] * (255 / 16)).round().astype(np.uint8)
        labels = torch.from_numpy(digits.target).to(torch.int64)[rows]
        source = ArraySource(images, labels, "the digits of scikit-learn")
        shape = ShortSide(size=self.image_size, upsample=True, resample=Resampling.BILINEAR)
        return decode_all(source, shape, channels=1, num_classes=10)
