"""Grids of images."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor


def image_grid(
    images: Tensor, *, columns: int | None = None, smallest: int = 32, gap: int = 2
) -> Image.Image:
    """Images laid out row by row on white.

    Args:
        images: uint8 [N, C, H, W], C = 1 or 3, N >= 1.
        columns: images in a row; None makes the grid about square.
        smallest: images below this size are enlarged by a whole factor, without smoothing.
        gap: white pixels between images.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    factor = max(1, math.ceil(smallest / max(height, width)))
    pixels = images.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    pixels = pixels.expand(n, 3, *pixels.shape[2:]) if channels == 1 else pixels
    height, width = height * factor + gap, width * factor + gap
    sheet = torch.full((3, rows * height + gap, columns * width + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = gap + i // columns * height, gap + i % columns * width
        sheet[:, top : top + height - gap, left : left + width - gap] = image
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())


def columns_for(num_classes: int | None) -> int | None:
    """Columns of a grid of samples whose classes come in turn: one a class, if they are few."""
    return num_classes if num_classes is not None and num_classes <= 20 else None
