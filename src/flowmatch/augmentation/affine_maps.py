"""The 2x2 matrices of geometric augmentation, a batch at a time.

They act on pixel coordinates with the centre of the image as origin, x to the right and y down; so
positive angles turn clockwise as seen. Products are sums of elementwise ones: a matrix product may
be rounded to TF32, which is a visible part of a pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotation(cos: Tensor, sin: Tensor) -> Tensor:
    """`[[cos, -sin], [sin, cos]]`, [B, 2, 2] of [B]."""
    return _matrix(cos, -sin, sin, cos)


def stretch(c: Tensor, s: Tensor) -> Tensor:
    """Longer by `2**r` along one axis, shorter by as much across it, where `r = hypot(c, s)`.

        exp(ln 2 [[c, s], [s, -c]])

    The axis lies at half the angle of the vector `(c, s)`, in octaves [B] each. Every symmetric
    positive matrix of determinant 1 is the stretch of exactly one such vector; that of `(-c, -s)`
    is its inverse.
    """
    r = torch.hypot(c, s).clamp(min=1e-12)  # 0 / 0 at no stretch
    half, ratio = torch.cosh(math.log(2) * r), torch.sinh(math.log(2) * r) / r
    return _matrix(half + ratio * c, ratio * s, ratio * s, half - ratio * c)


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a b`, [B, 2, 2] each."""
    return (a.unsqueeze(3) * b.unsqueeze(1)).sum(2)


def _matrix(xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    return torch.stack([xx, xy, yx, yy], 1).reshape(-1, 2, 2)
