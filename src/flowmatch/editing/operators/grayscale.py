"""Colour images in grey."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.editing.operators.operator import LinearOperator


@dataclass(frozen=True)
class Grayscale(LinearOperator):
    """`A x = sum_c w_c x_c`: three channels to one, [B, 3, H, W] -> [B, 1, H, W].

    Args:
        weights: of red, green and blue. The default is the luma of ITU-R BT.601, which Pillow uses.
    """

    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError(f"expected colour images [B, 3, H, W], got shape {tuple(x.shape)}")
        return (self._column(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._column(y) * y

    def pinv(self, y: Tensor, *, ridge: float = 0.0) -> Tensor:
        return self.adjoint(y) / (self.norm_squared(y) + ridge)

    def norm_squared(self, y: Tensor) -> float:
        return sum(w**2 for w in self.weights)

    def naive(self, y: Tensor) -> Tensor:
        """The grey image in all channels."""
        return y.expand(-1, 3, -1, -1)

    def _column(self, x: Tensor) -> Tensor:
        return torch.tensor(self.weights, dtype=x.dtype, device=x.device)[:, None, None]
