"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024), the field's strongest for images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmatch.component import Component
from flowmatch.networks.checks import (
    check_dropout,
    check_image_shape,
    check_multipliers,
    check_positive,
)
from flowmatch.networks.conditions import (
    ConditionConfig,
    Conditioned,
    ConditionEmbedding,
    check_conditions,
)
from flowmatch.networks.edm2_blocks import DecoderBlock, EncoderBlock, MPAttention
from flowmatch.networks.embeddings import read_labels
from flowmatch.networks.layers import Downsample, Upsample
from flowmatch.networks.magnitude import MPClassEmbedding, MPConv, MPFourier, MPLinear, mp_silu

EDM2Size = Literal["XS", "S", "M", "L", "XL", "XXL"]

SIZES: dict[EDM2Size, int] = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
"""Channels of the first level.  Source: EDM2, its table of hyperparameters."""


@dataclass(frozen=True, kw_only=True)
class EDM2Config(Component):
    """What an `EDM2UNet` is built from.

    All but `channels` defaults to the published networks, for latents of 64x64. Their weights have
    magnitude 1, and so want far larger steps than those of other networks: the source trains with
    Adam at rates from 0.012 (XS) to 0.0065 (XXL), which fall as one over the square root of time.

    Args:
        size: a published size, which gives `channels`: XS 128, S 192, M 256, L 320, XL 384,
            XXL 448.
        channels: channels of the first level; 192 if neither this nor `size` is given.
        multipliers: channels of each level over `channels`. Each level after the first has half
            the height and width of the one before. The embedding is as long as the widest.
        blocks: blocks a level on the way down; on the way up it is one more.
        attention_resolutions: heights of the feature maps whose blocks end in attention.
            (The first block after the bottom always does.)
        head_channels: channels of an attention head.
        dropout: probability of dropping a value inside the blocks, in [0, 1). The source takes 0.1
            from size M on.
        num_classes: number of classes without the null class; None for a network without classes.
        conditions: other conditions by name, whose embeddings are added to that of time. Their
            own weights are ordinary ones.
        gradient_checkpointing: compute blocks again in the backward pass instead of keeping their
            insides: less memory, more time.
        time_scale: what time is multiplied by before its cosines are taken. The source embeds
            log(noise over data) / 4. On a straight path that changes with t at the rate
            1 / (4 t (1 - t)): 1 in the middle, and 4 at t = 0.07 and t = 0.93.
    Raises:
        ValueError: a value is out of its range.
    """

    size: EDM2Size | None = None
    channels: int | None = None
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    num_classes: int | None = None
    conditions: Mapping[str, ConditionConfig] = field(default_factory=dict)
    gradient_checkpointing: bool = False
    time_scale: float = 4.0
    kind: Literal["edm2"] = "edm2"

    def __post_init__(self) -> None:
        if self.size not in (None, *SIZES):
            raise ValueError(
                f"size is {self.size!r}; it must be one of {', '.join(SIZES)}, or None"
            )
        check_positive(self, "channels", "blocks", "head_channels")
        check_multipliers(self.multipliers)
        check_dropout(self.dropout)
        check_conditions(self.num_classes, self.conditions)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        channels = self.channels or SIZES[self.size or "S"]
        return tuple(channels * multiplier for multiplier in self.multipliers)

    def build(self, shape: tuple[int, ...]) -> EDM2UNet:
        """The network for images of shape (C, H, W).

        Raises:
            ValueError: the shape does not fit the levels, attention or heads; see `EDM2UNet`.
        """
        return EDM2UNet(shape, self)

    def attention_at(self, height: int, channels: int) -> MPAttention | None:
        """Attention, if `attention_resolutions` names `height`."""
        return self.attention(channels) if height in self.attention_resolutions else None

    def attention(self, channels: int) -> MPAttention:
        """Attention over this number of channels."""
        heads, rest = divmod(channels, self.head_channels)
        if rest:
            raise ValueError(
                f"attention over {channels} channels cannot have heads of {self.head_channels};"
                " choose head_channels that divides the channels"
            )
        return MPAttention(channels, heads=heads)


class EDM2Embedding(nn.Module):
    """Time, class and other conditions as one vector of magnitude 1.

        mp_silu((time + class + conditions) / sqrt(3)),   fewer terms likewise

    The embedding c of the conditions has ordinary weights, and enters as c / sqrt(1 + rms(c)^2): at
    most as loud as the others, zero where it is zero, and still telling short from long.
    """

    def __init__(self, config: EDM2Config) -> None:
        super().__init__()
        width = max(config.widths)
        self.fourier = MPFourier(config.widths[0], scale=config.time_scale)
        self.time = MPLinear(config.widths[0], width)
        self.label: MPClassEmbedding | None = None
        if config.num_classes is not None:
            self.label = MPClassEmbedding(config.num_classes, width)
        self.cond: ConditionEmbedding | None = None
        if config.conditions:
            self.cond = ConditionEmbedding(config.conditions, width)

    def forward(
        self, t: Tensor, labels: Tensor | None, cond: Mapping[str, Tensor] | None, x: Tensor
    ) -> Tensor:
        """Embed times [B], labels int64 [B] and what `cond` says of the batch x: [B, width]."""
        parts = [self.time(self.fourier(t).to(self.time.weight.dtype))]
        if self.label is not None:
            parts.append(self.label(labels))
        if self.cond is not None:
            c = self.cond(cond, x)
            parts.append(c * torch.rsqrt(1 + c.square().mean(1, keepdim=True)))
        return mp_silu(sum(parts[1:], parts[0]) / math.sqrt(len(parts)))


class EDM2UNet(Conditioned):
    """A U-Net in which activations, weights and updates keep their magnitudes.

    No layer has a bias or a group norm: a channel of ones beside those of the image stands for all
    biases. Images are expected with magnitude near 1. A gain that is learned from zero ends the
    network, so the output starts at zero.

    In training mode each forward pass writes the normalised weights back, see `MPWeight`.

    Args:
        shape: (C, H, W) of the images.
        config: everything else.
    Raises:
        ValueError: `shape` is not (C, H, W), the levels do not divide H and W, an attention
            resolution never occurs, or heads do not divide the channels.
    Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
        Models", config G. Preconditioning and the weighting of the loss are no part of it.
    """

    def __init__(self, shape: tuple[int, ...], config: EDM2Config) -> None:
        super().__init__()
        check_image_shape(
            shape,
            levels=len(config.multipliers),
            attention_resolutions=config.attention_resolutions,
        )
        self.config = config
        self.embedding = EDM2Embedding(config)
        self.conv_in = MPConv(shape[0] + 1, config.widths[0], kernel=3)
        self.encoder = nn.ModuleList(_encoder(shape[1], config))
        self.decoder = nn.ModuleList(_decoder(shape[1], config))
        self.conv_out = MPConv(config.widths[0], shape[0], kernel=3)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: images [B, C, H, W].
            t: times [B] in [0, 1], float32 or wider.
            cond: None, or `{"label": int64 [B]}` in [0, num_classes] and `conditions`; see
                `read_labels` and `ConditionEmbedding`.
        Returns:
            [B, C, H, W] in the dtype of `x`.
        Raises:
            ValueError: `cond` has a name that the network does not know.
        """
        labels = read_labels(cond, x, num_classes=self.num_classes, others=self.config.conditions)
        embedding = self.embedding(t, labels, cond, x)
        h = self.conv_in(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for block in self.encoder:
            h = self._apply_block(block, h, embedding)
            skips.append(h)
        for block in self.decoder:
            inputs = (h, embedding, skips.pop()) if block.takes_skip else (h, embedding)
            h = self._apply_block(block, *inputs)
        out: Tensor = self.conv_out(h, self.gain)
        return out.to(x.dtype)

    def _apply_block(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return block(*inputs)  # type: ignore[no-any-return]


def _encoder(height: int, config: EDM2Config) -> Iterator[EncoderBlock]:
    """The blocks of the way down; the output of each is a skip."""
    block = partial(EncoderBlock, embedding=max(config.widths), dropout=config.dropout)
    inputs = config.widths[0]
    for level, width in enumerate(config.widths):
        if level > 0:
            yield block(inputs, inputs, resample=Downsample(inputs, conv=False))
        for _ in range(config.blocks):
            yield block(inputs, width, attention=config.attention_at(height >> level, width))
            inputs = width


def _decoder(height: int, config: EDM2Config) -> Iterator[DecoderBlock]:
    """Two blocks at the bottom and those of the way up, which take the newest skips."""
    block = partial(DecoderBlock, embedding=max(config.widths), dropout=config.dropout)
    skips = _skips(config)
    inputs = skips[-1]
    yield block(inputs, inputs, attention=config.attention(inputs))
    yield block(inputs, inputs)
    for level, width in reversed(list(enumerate(config.widths))):
        for _ in range(config.blocks + 1):
            attention = config.attention_at(height >> level, width)
            yield block(inputs, width, skip=skips.pop(), attention=attention)
            inputs = width
        if level > 0:
            yield block(inputs, inputs, resample=Upsample(inputs, conv=False))


def _skips(config: EDM2Config) -> list[int]:
    """Channels of the first convolution's output and of each block's on the way down."""
    skips = [config.widths[0]]
    for level, width in enumerate(config.widths):
        skips += [skips[-1]] * (level > 0) + [width] * config.blocks
    return skips
