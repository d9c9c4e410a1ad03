"""Fewer pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from flowmatch.editing.operators.operator import LinearOperator


@dataclass(frozen=True)
class Downsample(LinearOperator):
    """The mean over boxes of `factor` x `factor` pixels: `A A^T = I / factor^2`.

    Args:
        factor: >= 1; it divides the height and width of the images.
    Raises:
        ValueError: the factor is below 1.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, got {self.factor}")

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            height, width = x.shape[-2:]
            raise ValueError(
                f"factor {self.factor} does not divide images of {height}x{width} pixels; choose"
                " one that divides both sides"
            )
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._spread(y) / self.factor**2

    def pinv(self, y: Tensor, *, ridge: float = 0.0) -> Tensor:
        return self._spread(y) / (1 + self.factor**2 * ridge)

    def norm_squared(self, y: Tensor) -> float:
        return 1 / self.factor**2

    def naive(self, y: Tensor) -> Tensor:
        """Bicubic interpolation, cut to [-1, 1] beyond which it overshoots."""
        size = (y.shape[-2] * self.factor, y.shape[-1] * self.factor)
        return F.interpolate(y, size, mode="bicubic", align_corners=False).clamp(-1, 1)

    def shown(self, y: Tensor) -> Tensor:
        """Each measured pixel as a box."""
        return self._spread(y)

    def _spread(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)
