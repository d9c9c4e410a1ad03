"""Pixels that are known and pixels that are not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.editing.operators.operator import LinearOperator


@dataclass(frozen=True, eq=False)
class Inpaint(LinearOperator):
    """`A x = known * x`: the known pixels, and 0 for the others.

    Args:
        known: bool [H, W] or [C, H, W], True where a pixel is known.
    Raises:
        ValueError: not bool, or nothing is known.
    """

    known: Tensor

    def __post_init__(self) -> None:
        if self.known.dtype != torch.bool or self.known.ndim not in (2, 3):
            raise ValueError(
                "known must be a bool tensor [H, W] or [C, H, W], got shape"
                f" {tuple(self.known.shape)} of {self.known.dtype}; pass e.g. mask > 0"
            )
        if not bool(self.known.any()):
            raise ValueError("no pixel is known, so there is nothing to start from; fill in less")

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-self.known.ndim :] != self.known.shape:
            raise ValueError(
                f"the mask is {tuple(self.known.shape)}, but the images are {tuple(x.shape[1:])};"
                " give a mask of their size"
            )
        return torch.where(self.known.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def pinv(self, y: Tensor, *, ridge: float = 0.0) -> Tensor:
        return self(y) / (1 + ridge)

    def norm_squared(self, y: Tensor) -> float:
        return 1.0

    def measured(self, y: Tensor) -> int:
        """The known pixels; the others are 0 whatever x is."""
        return int(self.known.expand(y.shape[1:]).sum())

    def naive(self, y: Tensor) -> Tensor:
        """The unknown pixels at the mean of the known ones, for each image and channel."""
        known = self.known.to(y.device).expand_as(y)
        count = known.sum((-2, -1), keepdim=True).clamp(min=1)
        mean = self(y).sum((-2, -1), keepdim=True) / count
        return torch.where(known, y, mean)

    def shown(self, y: Tensor) -> Tensor:
        """The unknown pixels in mid-grey."""
        return self(y)
