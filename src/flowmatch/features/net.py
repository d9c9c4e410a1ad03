"""What turns images into the vectors that they are compared by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

FeatureKind = Literal["inception", "dinov2", "data"]


class Extracted(NamedTuple):
    """What a feature net says about B images."""

    vectors: Tensor
    """[B, dims] float32."""
    logits: Tensor | None
    """Scores of the classes, [B, K] float32; None from a net that knows no classes of the data."""


class FeatureNet(ABC):
    """A fixed network: images in, feature vectors out, without gradients.

    A new one sets the four attributes and defines `to`, `describe` and `_extract`.
    """

    kind: FeatureKind

    dims: int
    """Length of a feature vector."""

    num_classes: int | None
    """How many logits there are; None if there are none."""

    hash: str
    """12 hexadecimal digits that change with the weights."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same net on `device`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a number measured with this net must be printed with: plain data, fit for JSON."""

    @abstractmethod
    def _extract(self, images: Tensor) -> Extracted:
        """The features of valid images, uint8 [B, C, H, W]."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        """The features of images, each on its own: they do not depend on the rest of the batch.

        Args:
            images: [B, C, H, W] uint8, with C = 1 (grey) or 3 (RGB).
        Raises:
            ValueError: another dtype or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                "features are those of uint8 images [B, C, H, W] with 1 or 3 channels, but got"
                f" {tuple(images.shape)} of {images.dtype}; flowmatch.tensors.to_uint8 converts"
                " images in [-1, 1]"
            )
        return self._extract(images)
