"""Rotary position embedding over a grid: attention that knows where patches lie to each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BASE = 10_000.0
"""About the ratio of the fastest frequency to the slowest."""


def axial_rotation(grid: tuple[int, int], channels: int, *, first: int = 0, like: Tensor) -> Tensor:
    """Cosines and sines of the angles by which the heads of each token are turned.

    A head is read as `channels / 2` pairs of channels. In the token of row r and column c, the
    first half of the pairs turns with the row, the second half with the column:

        angle_i = r w_i,   angle_{n+i} = c w_i,   w_i = 10000^(-i / n),   n = channels / 4

    It is computed for the grid at hand, so a network takes images of any size.

    Args:
        grid: rows and columns of patches.
        channels: channels of a head, divisible by 4.
        first: number of tokens before those of the grid, which have no place and are not turned.
        like: a tensor on the device; angles are float32, or float64 if `like` is.
    Returns:
        [2, first + rows * columns, channels / 2]: cosines, then sines. Patches are row by row.
    Source: Su et al. 2021, equation 15, once for each axis.
    """
    rows, columns = grid
    dtype = torch.promote_types(like.dtype, torch.float32)
    index = torch.arange(channels // 4, dtype=dtype, device=like.device)
    frequencies = BASE ** (-index / len(index))
    places = torch.arange(max(grid), dtype=dtype, device=like.device)
    waves = places[:, None] * frequencies
    vertical = waves[:rows, None].expand(-1, columns, -1)
    horizontal = waves[None, :columns].expand(rows, -1, -1)
    angles = torch.cat([vertical, horizontal], dim=-1).flatten(0, 1)
    angles = F.pad(angles, (0, 0, first, 0))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn channel i against channel i + channels / 2 of each token by its angle.

        (x_i, y_i) -> (x_i cos - y_i sin, x_i sin + y_i cos)

    Args:
        x: queries or keys [B, heads, tokens, channels].
        rotation: what `axial_rotation` gives, [2, tokens, channels / 2].
    Returns:
        The same shape, in the wider of both dtypes.
    Source: Su et al. 2021, equation 34.
    """
    cos, sin = rotation
    x, y = x.chunk(2, dim=-1)
    return torch.cat([x * cos - y * sin, x * sin + y * cos], dim=-1)
