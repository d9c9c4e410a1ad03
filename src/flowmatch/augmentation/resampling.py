"""Images under affine maps, sampled once, at twice the resolution.

An image is doubled in size, looked up at the mapped places between its fine pixels, and halved
again. The doubling keeps the bilinear look-up accurate, and the halving takes out what the map
moves beyond the frequencies that the pixels can hold (shrinking by up to two does not alias).
Outside of its edges an image continues as its mirror image.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

ROLLOFF = 0.5
"""Width of the filter's transition, as a part of the highest frequency. Less is sharper, but rings
farther around edges; a half rings less than Lanczos-3 and blurs no more."""
MARGIN = 2
"""Pixels around the result that are looked up too, so that halving sees what lies beyond its edges.
They leave less than half of an 8-bit level of error at the edge of a photograph."""


def resample(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """The images `y(q) = x(matrix (q - shift))`, continued by reflection.

    Places are in pixels from the image's centre, x to the right and y down.

    Args:
        x: images [B, C, H, W], float32 or float64.
        matrix: [B, 2, 2]: from places in `y` to places in `x`.
        shift: [B, 2]: how far the content moves, in pixels.
    Returns:
        images like `x`. They can leave the range of `x` a little, as any sharp filter's do.
    """
    height, width = x.shape[-2:]
    right = _fine_places(width, x) - shift[:, 0, None]
    down = _fine_places(height, x) - shift[:, 1, None]
    # [B, fine height, fine width, 2]: along the last, where x and y of each fine pixel lead
    grid = torch.stack(
        [
            _looked_up(matrix[:, 0], right, down, width),
            _looked_up(matrix[:, 1], right, down, height),
        ],
        -1,
    )
    doubled = _doubling(height, x) @ x @ _doubling(width, x).T
    moved = F.grid_sample(doubled, grid, mode="bilinear", align_corners=False)
    return _halving(height, x) @ moved @ _halving(width, x).T


def _doubling(size: int, x: Tensor) -> Tensor:
    return doubling(size, x.dtype, x.device)


def _halving(size: int, x: Tensor) -> Tensor:
    """Halves a row that has margins, and cuts them off: [size, 2 size + 4 MARGIN]."""
    return doubling(size + 2 * MARGIN, x.dtype, x.device)[:, MARGIN:-MARGIN].T / 2


@lru_cache(maxsize=32)
def doubling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix U [2 size, size] that doubles a row of pixels; `U^T / 2` halves it again.

    The mirrored row is a sum of cosines, with pixel `j` at `j + 1/2`. Each is read off at the fine
    pixels, `(i + 1/2) / 2`, weighed by the root of a half-band filter h:

        U[i, j] = 1/n sum_k (2 - [k = 0]) h(k/n) cos(pi k (i + 1/2) / 2n) cos(pi k (j + 1/2) / n)
        h(f) = cos(pi/4 (1 + clamp((f - 1) / ROLLOFF, -1, 1))),  k = 0 ... 2n - 1

    As `h(f)^2 + h(2 - f)^2 = 1`, `U^T U / 2` is the identity: halving undoes doubling, so that what
    is moved by quarter turns and whole pixels is not blurred.

    Source: the root-raised-cosine filter of communications (Nyquist 1928), on a mirrored row; in
        the place of the orthonormal wavelets of Karras et al. 2020 (ADA), appendix B.
    """
    k = torch.arange(2 * size, dtype=torch.float64, device="cpu")
    gain = torch.cos(math.pi / 4 * (1 + ((k / size - 1) / ROLLOFF).clamp(-1, 1)))
    weights = gain * torch.where(k > 0, 2, 1) / size

    def cosines(pixels: int) -> Tensor:
        places = (torch.arange(pixels, dtype=torch.float64, device="cpu") + 0.5) / pixels
        return torch.cos(math.pi * places[:, None] * k)

    return ((cosines(2 * size) * weights) @ cosines(size).T).to(device, dtype)


def _fine_places(size: int, x: Tensor) -> Tensor:
    """Where fine pixels lie, in pixels from the centre: [2 size + 4 MARGIN]."""
    size += 2 * MARGIN
    return (torch.arange(2 * size, dtype=x.dtype, device=x.device) + 0.5 - size) / 2


def _looked_up(row: Tensor, right: Tensor, down: Tensor, size: int) -> Tensor:
    """One coordinate of the places, mirrored into the image, from -1 to 1 as `grid_sample` counts.

    By hand, as not every backend's `grid_sample` mirrors. In the outer half of the outermost fine
    pixels the mirror image has the same colour, so there the place is moved to their centre.
    """
    row = row * (2 / size)
    places = row[:, 0, None, None] * right[:, None, :] + row[:, 1, None, None] * down[:, :, None]
    mirrored = 1 - (torch.remainder(places + 1, 4) - 2).abs()
    edge = 1 - 1 / (2 * size)
    return mirrored.clamp(-edge, edge)
