"""The layers of DDPM++ and NCSN++: attention, residual blocks."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from flowmatch.networks.attention import AttentionBlock
from flowmatch.networks.layers import Dropout, Layer, conv3x3
from flowmatch.networks.resampling import Filter, downsample, upsample

SKIP_SCALE = math.sqrt(0.5)
"""What a sum of two branches is multiplied by: if each has variance 1, so has the result."""

NEAR_ZERO = 1e-5
"""Gain of the convolutions that start as almost nothing."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in at most 32 groups of at least 4 channels.

    Source: Song et al. 2021, appendix H.
    """
    most = max(1, min(32, channels // 4))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def xavier_init(layer: Layer, *, gain: float = 1.0) -> Layer:
    """Draw the weight uniformly with variance 2 gain^2 / (fan_in + fan_out); the bias is zero.

    Source: Glorot & Bengio 2010, equation 16.
    """
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ScaledAttention(AttentionBlock):
    """Self-attention over the pixels, whose sum with its input is scaled by sqrt(1/2).

        output = sqrt(1/2) (x + W_o softmax(q k^T / sqrt(ch)) v),   (q, k, v) = W_qkv norm(x)

    Args:
        channels: channels of the feature map.
        heads: number of heads.
    Raises:
        ValueError: `heads` does not divide `channels`.
    Source: Song et al. 2021, appendix H; gains of Karras et al. 2022, appendix F.
    """

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__(channels, heads=heads)
        self.norm = group_norm(channels)
        xavier_init(self.qkv, gain=math.sqrt(0.2))
        xavier_init(self.proj_out, gain=NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return SKIP_SCALE * super().forward(x)


class ScaledResidualBlock(nn.Module):
    """A residual block that may halve or double the image, and attend to it at last.

        h = conv(resample(silu(norm(x))))
        additive:     branch = conv(dropout(silu(norm(h + e))))
        scale-shift:  branch = conv(dropout(silu(norm(h) * (1 + e_scale) + e_shift)))
        output = sqrt(1/2) (skip(resample(x)) + branch), and then `ScaledAttention`

    The second convolution starts near zero.

    Args:
        inputs: channels of the block's input.
        outputs: channels of its output. The skip is a 1x1 convolution where they differ and where
            the image is resampled.
        embedding: length of the embedding e of time and conditions.
        dropout: probability of dropping a value before the second convolution.
        scale_shift: let the embedding scale and shift the second norm, instead of adding to its
            input.
        resample: "down" halves height and width, "up" doubles them.
        kind: filter of the resampling.
        heads: heads of the attention; None for a block without.
    Source: Song et al. 2021, appendix H (there the block of BigGAN with rescaled skips).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        embedding: int,
        dropout: float,
        scale_shift: bool,
        resample: Literal["down", "up"] | None = None,
        kind: Filter = "box",
        heads: int | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample
        self.kind: Filter = kind
        self.norm_in = group_norm(inputs)
        self.conv_in = xavier_init(conv3x3(inputs, outputs))
        self.affine = xavier_init(nn.Linear(embedding, 2 * outputs if scale_shift else outputs))
        self.norm_out = group_norm(outputs)
        self.dropout = Dropout(dropout)
        self.conv_out = xavier_init(conv3x3(outputs, outputs), gain=NEAR_ZERO)
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs or resample is not None:
            self.skip = xavier_init(nn.Conv2d(inputs, outputs, kernel_size=1))
        self.attention: nn.Module = nn.Identity()
        if heads is not None:
            self.attention = ScaledAttention(outputs, heads=heads)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, inputs, H, W] and the embedding [B, embedding] -> [B, outputs, H', W']."""
        h = self.conv_in(self._resampled(F.silu(self.norm_in(x))))
        e = self.affine(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + e)
        h = self.conv_out(self.dropout(F.silu(h)))
        out: Tensor = self.attention(SKIP_SCALE * (self.skip(self._resampled(x)) + h))
        return out

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return downsample(x, self.kind)
        if self.resample == "up":
            return upsample(x, self.kind)
        return x
