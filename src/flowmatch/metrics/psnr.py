"""How close an image is to the true one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowmatch.tensors import mean_flat


def psnr(x: Tensor, truth: Tensor, *, peak: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each image, in decibels.

        psnr = 10 log10( peak^2 / mean((x - truth)^2) )

    Args:
        x: images, [B, *D].
        truth: what they should be, [B, *D].
        peak: the range of the values, > 0; 2 for images in [-1, 1].
    Returns:
        [B] float64; infinite where the two are equal.
    Raises:
        ValueError: different shapes, or a peak that is not positive.
    """
    if x.shape != truth.shape:
        raise ValueError(
            f"expected images of one shape, got {tuple(x.shape)} and {tuple(truth.shape)}"
        )
    if not (math.isfinite(peak) and peak > 0):
        raise ValueError(f"peak must be a positive number, got {peak}")
    return 10 * torch.log10(peak**2 / mean_flat((x.double() - truth.double()) ** 2))
