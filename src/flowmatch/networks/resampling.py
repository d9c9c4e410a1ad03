"""Halving and doubling feature maps with a short low-pass filter.

Both filters are made of means of two neighbours, along height and width alike: "box" [1, 1] of one,
"fir" [1, 3, 3, 1] of three in a row. So they need no weights, and keep the memory format. Beyond
its border the image is zero.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Filter = Literal["box", "fir"]

MEANS: dict[Filter, int] = {"box": 1, "fir": 3}
"""How many means of two neighbours a filter consists of."""


def downsample(x: Tensor, kind: Filter) -> Tensor:
    """Filter and keep every other pixel.

        box: y_i = (x_2i + x_2i+1) / 2
        fir: y_i = (x_2i-1 + 3 x_2i + 3 x_2i+1 + x_2i+2) / 8

    Args:
        x: [B, C, H, W] of even height and width.
        kind: the filter.
    Returns:
        [B, C, H/2, W/2].
    Source: Song et al. 2021, appendix H; the filter of Karras et al. 2019, "A style-based
        generator architecture for generative adversarial networks".
    """
    return F.avg_pool2d(x if kind == "box" else _smooth(x), 2)


def upsample(x: Tensor, kind: Filter) -> Tensor:
    """Put zeros between the pixels and filter, with gain 2 along height and width.

        box: y_2i = y_2i+1 = x_i
        fir: y_2i = (x_i-1 + 3 x_i) / 4,   y_2i+1 = (3 x_i + x_i+1) / 4

    Args:
        x: [B, C, H, W].
        kind: the filter.
    Returns:
        [B, C, 2H, 2W].
    Source: see `downsample`.
    """
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return x if kind == "box" else _smooth(x)


def _smooth(x: Tensor) -> Tensor:
    """[1, 2, 1] / 4 along height and width: two means of two neighbours."""
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=1)


class DownsampleConv(nn.Conv2d):
    """A filter and a 3x3 convolution, of which every other pixel is kept.

    Filter and convolution commute, so the convolution is computed at half the size.

    Args:
        inputs, outputs: channels.
        kind: the filter.
    """

    def __init__(self, inputs: int, outputs: int, *, kind: Filter) -> None:
        super().__init__(inputs, outputs, kernel_size=3, stride=2)
        self.kind: Filter = kind

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/2, W/2]."""
        means = MEANS[self.kind]
        x = F.pad(x, 4 * [(means + 1) // 2])
        for _ in range(means):
            x = F.avg_pool2d(x, 2, stride=1)
        return super().forward(x)
