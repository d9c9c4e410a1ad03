"""The small layers that the blocks of a U-Net share: norm, zero start, dropout, resampling."""

from __future__ import annotations

import math
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from flowmatch.randomness import Rows

Layer = TypeVar("Layer", bound=nn.Module)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in 32 groups, or in the most that divide both 32 and `channels`.

    Source: Wu & He 2018.
    """
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-5)


def conv3x3(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size of the image, or divides it by `stride`."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)


def zero_init(layer: Layer) -> Layer:
    """Set all parameters of a layer to zero, so that the branch it ends starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Dropout(nn.Module):
    """Dropout whose mask belongs to the sample, whatever batch it is computed in.

    Who trains sets `rows` before each forward pass (see `dropouts_of`): the masks are functions
    of its key and of the row, so a batch may be split over processes and parts. They stay the same
    until it is set again, as recomputing activations wants. Without `rows` this is `nn.Dropout`.

    Args:
        p: probability of dropping a value, in [0, 1).
    Source: Srivastava et al. 2014.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.rows: Rows | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, *D] -> [B, *D]."""
        if self.rows is None or not self.training or self.p == 0:
            return F.dropout(x, self.p, training=self.training)
        return self.masked(x)

    def masked(self, x: Tensor) -> Tensor:
        """Drop by the samples' own masks."""
        assert self.rows is not None
        kept = self.rows.draw(tuple(x.shape[1:]), device=x.device) >= self.p
        return x * kept.to(x.dtype) / (1 - self.p)


def dropouts_of(network: nn.Module) -> list[Dropout]:
    """The dropout layers of a network, in a fixed order: number i takes purpose ("dropout", i)."""
    return [layer for layer in network.modules() if isinstance(layer, Dropout) and layer.p > 0]


class Downsample(nn.Module):
    """Halve height and width: a 3x3 convolution of stride 2, or the mean of 2x2 pixels."""

    def __init__(self, channels: int, *, conv: bool) -> None:
        super().__init__()
        self.op = conv3x3(channels, channels, stride=2) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Double height and width: repeat each pixel, then (with `conv`) a 3x3 convolution."""

    def __init__(self, channels: int, *, conv: bool) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
