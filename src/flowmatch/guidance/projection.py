"""Projection of one vector of a batch onto another."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmatch.tensors import expand_like, sum_flat


def projected(v: Tensor, onto: Tensor) -> Tensor:
    """The multiple of `onto` that is nearest to `v`, for each sample; 0 where `onto` is.

        <v, onto> / |onto|^2 onto

    Args:
        v, onto: [B, *D].
    Returns:
        [B, *D].
    """
    squared = sum_flat(onto**2)
    factor = sum_flat(v * onto) / squared.clamp_min(torch.finfo(squared.dtype).tiny)
    return expand_like(factor, onto) * onto
