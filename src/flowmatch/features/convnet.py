"""A small convolutional classifier, whose cost hardly depends on the size of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmatch.component import Component

LARGEST = 32
"""Side of the first stage's maps, at most: a larger image is taken in by larger strides."""


@dataclass(frozen=True, kw_only=True)
class Architecture(Component):
    """The numbers that a `ConvNet` is built from.

    Args:
        shape: channels, height and width of the images; both sides at least 4 pixels.
        outputs: how many classes are told apart.
        widths: channels of the stages; each stage halves the sides of the one before.
    Raises:
        ValueError: images of another kind, or less than two classes.
    """

    shape: tuple[int, ...]
    outputs: int
    widths: tuple[int, ...] = (16, 32, 64)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or self.shape[0] not in (1, 3) or min(self.shape[1:]) < 4:
            raise ValueError(
                "features are fitted to images of 1 or 3 channels and at least 4x4 pixels, but a"
                f" sample of this data set has shape {self.shape}"
            )
        if self.outputs < 2 or min(self.widths, default=0) < 1:
            raise ValueError(f"{self.outputs} classes, widths {self.widths} are no classifier")

    @property
    def stride(self) -> int:
        """Step of the first convolution, in pixels; it leaves sides of 4 or more to the stages."""
        _, height, width = self.shape
        return min(min(height, width) // 4, math.ceil(math.sqrt(height * width) / LARGEST))


class ConvNet(nn.Module):
    """Three stages of two convolutions; their features are averaged over the image.

    The early stages see how an image is drawn (noise, edges, texture), the last one what it shows;
    only the last one is classified. `vectors` are the averages of all stages, each feature shifted
    and scaled to mean 0 and variance 1 over images like those of the fitting, so that no stage
    outweighs another in a distance. In evaluation mode each image is treated on its own.

    Args:
        architecture: the numbers to build it from.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels, stride = architecture.shape[0], architecture.stride
        self.stages = nn.ModuleList()
        for width in architecture.widths:
            self.stages.append(nn.Sequential(*_conv(channels, width, stride), *_conv(width, width)))
            channels, stride = width, 2
        self.head = nn.Linear(channels, architecture.outputs)
        self.dims = sum(architecture.widths)
        self.register_buffer("centre", torch.zeros(self.dims))
        self.register_buffer("scale", torch.ones(self.dims))

    def means(self, x: Tensor) -> Tensor:
        """Averages of all stages over the image, as they are: [B, C, H, W] -> [B, dims]."""
        averages = []
        for stage in self.stages:
            x = stage(x)
            averages.append(x.mean((2, 3)))
        return torch.cat(averages, dim=1)

    def logits(self, means: Tensor) -> Tensor:
        """Scores of the classes: [B, dims] -> [B, outputs]."""
        return self.head(means[:, -self.head.in_features :])  # type: ignore[no-any-return]

    def vectors(self, means: Tensor) -> Tensor:
        """The averages on one scale: [B, dims] -> [B, dims]."""
        return (means - self.centre) * self.scale

    def standardise(self, means: Sequence[Tensor]) -> None:
        """Fix shift and scale by the averages [B, dims] of images, batch by batch."""
        values = torch.cat(tuple(means)).double()
        std = values.std(0)
        # A feature that hardly varies over the data must not become a microscope for fakes.
        floor = LEAST_STD * std.square().mean().sqrt()
        self.centre.copy_(values.mean(0))
        self.scale.copy_(1 / std.clamp(min=floor.clamp(min=torch.finfo(torch.float32).tiny)))


LEAST_STD = 0.05
"""Smallest standard deviation that a feature is scaled by, as a share of that of all features."""


def _conv(channels: int, width: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Convolution (kernels overlap by a pixel on each side), batch norm, SiLU."""
    conv = nn.Conv2d(channels, width, stride + 2, stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(width), nn.SiLU(inplace=True)
