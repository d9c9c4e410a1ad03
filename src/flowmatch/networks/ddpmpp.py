"""DDPM++ and NCSN++ (Song et al. 2021), as Karras et al. 2022 train them on small images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmatch.component import Component
from flowmatch.networks.checks import (
    check_choice,
    check_dropout,
    check_image_shape,
    check_multipliers,
    check_positive,
)
from flowmatch.networks.conditions import ConditionConfig, Conditioned, check_conditions
from flowmatch.networks.ddpmpp_embedding import JointEmbedding
from flowmatch.networks.ddpmpp_layers import (
    NEAR_ZERO,
    SKIP_SCALE,
    ScaledResidualBlock,
    group_norm,
    xavier_init,
)
from flowmatch.networks.ddpmpp_sizes import SIZES, TIME_SCALES, Embedding, Encoder, Size
from flowmatch.networks.layers import conv3x3
from flowmatch.networks.resampling import DownsampleConv, Filter

_BY_SIZE: Any = None  # replaced in __post_init__


@dataclass(frozen=True, kw_only=True)
class DDPMPPConfig(Component):
    """What a `DDPMPP` is built from.

    `size` fills in the fields marked "by size" below that are not given: what is given wins, and
    the config then holds every value. (So another `size` for a saved config, or in
    `dataclasses.replace`, changes nothing: all its fields are given.)

    Args:
        size: a network of Karras et al. 2022: DDPM++ "cifar10" with 55.7M parameters, "ffhq64" and
            "afhq64" with 61.8M; NCSN++ "ncsnpp-cifar10" with 56.4M, "ncsnpp-ffhq64" and
            "ncsnpp-afhq64" with 62.8M. None: "cifar10".
        channels: channels that the multipliers multiply; the embedding of time is four times as
            long.
        multipliers: channels of each level over `channels`, by size. Each level after the first has
            half the height and width of the one before.
        blocks: residual blocks a level on the way down; on the way up it is one more.
        attention_resolutions: heights of the feature maps with attention: after each block on the
            way down, after the last on the way up. (The middle always has attention.)
        heads: attention heads.
        dropout: probability of dropping a value inside the residual blocks, in [0, 1), by size.
        embedding: of time, by size: "positional" sines, or "fourier" ones of random frequencies,
            and twice as many.
        encoder: by size: "residual" adds the image itself to each level of the way down.
        resample: filter of halving and doubling, by size: "box" [1, 1] or "fir" [1, 3, 3, 1].
        scale_shift: let time and conditions scale and shift the norms, instead of adding to their
            input.
        num_classes: number of classes without the null class; None for a network without classes.
        conditions: other conditions by name, whose embeddings are added to that of time. The
            vector of augmentation is `{"augment": Vector(dim=9, when_absent="zero")}`.
        gradient_checkpointing: compute residual blocks again in the backward pass instead of
            keeping their insides: less memory, more time.
        time_scale: what time is multiplied by inside its embedding: 1000 unless given, or 16 (turns
            in a unit of time) for "fourier".
    Raises:
        ValueError: a value is out of its range.
    Source: Karras et al. 2022, table 7.
    """

    size: Size | None = None
    channels: int = 128
    multipliers: tuple[int, ...] = _BY_SIZE
    blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    heads: int = 1
    dropout: float = _BY_SIZE
    embedding: Embedding = _BY_SIZE
    encoder: Encoder = _BY_SIZE
    resample: Filter = _BY_SIZE
    scale_shift: bool = False
    num_classes: int | None = None
    conditions: Mapping[str, ConditionConfig] = field(default_factory=dict)
    gradient_checkpointing: bool = False
    time_scale: float = _BY_SIZE
    kind: Literal["ddpmpp"] = "ddpmpp"

    def __post_init__(self) -> None:
        if self.size is not None:
            check_choice("size", self.size, Size)
        for name, value in SIZES[self.size or "cifar10"].items():
            self._fill(name, value)
        check_choice("embedding", self.embedding, Embedding)
        check_choice("encoder", self.encoder, Encoder)
        check_choice("resample", self.resample, Filter)
        self._fill("time_scale", TIME_SCALES[self.embedding])
        check_positive(self, "channels", "blocks", "heads")
        check_multipliers(self.multipliers)
        check_dropout(self.dropout)
        check_conditions(self.num_classes, self.conditions)

    def _fill(self, name: str, value: object) -> None:
        """Set a field that was not given."""
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def build(self, shape: tuple[int, ...]) -> DDPMPP:
        """The network for images of shape (C, H, W).

        Raises:
            ValueError: the shape does not fit the levels, attention or heads; see `DDPMPP`.
        """
        return DDPMPP(shape, self)

    def block(
        self,
        inputs: int,
        outputs: int,
        *,
        resample: Literal["down", "up"] | None = None,
        attention: bool = False,
    ) -> ScaledResidualBlock:
        """A residual block between these numbers of channels."""
        return ScaledResidualBlock(
            inputs,
            outputs,
            embedding=4 * self.channels,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            resample=resample,
            kind=self.resample,
            heads=self.heads if attention else None,
        )


class DDPMPP(Conditioned):
    """Residual blocks down to a small feature map and up again, with skips across.

    Unlike in the U-Net of Ho et al. 2020, every sum of two branches is scaled by sqrt(1/2), the
    halving and doubling is done by residual blocks, and the conditions join the time before its
    layers. The residual encoder (NCSN++) adds the image to each level after the first, halved and
    convolved from level to level. The last convolution starts near zero, and so does the output.

    It runs in the memory format of its input and weights: `net.to(memory_format=
    torch.channels_last)` is the caller's choice.

    Args:
        shape: (C, H, W) of the images.
        config: everything else.
    Raises:
        ValueError: `shape` is not (C, H, W), the levels do not divide H and W, an attention
            resolution never occurs, or heads do not divide the channels.
    Source: Song et al. 2021, appendix H; Karras et al. 2022, appendix F.
    """

    def __init__(self, shape: tuple[int, ...], config: DDPMPPConfig) -> None:
        super().__init__()
        check_image_shape(
            shape,
            levels=len(config.multipliers),
            attention_resolutions=config.attention_resolutions,
        )
        self.config = config
        self.embed = JointEmbedding(
            config.channels,
            4 * config.channels,
            kind=config.embedding,
            scale=config.time_scale,
            num_classes=config.num_classes,
            conditions=config.conditions,
        )
        self.conv_in = xavier_init(conv3x3(shape[0], config.channels))
        self.encoder, skips = _encoder(shape[1], config)
        self.pyramid = _pyramid(shape[0], config)
        bottom = skips[-1]
        self.middle = nn.ModuleList(
            [config.block(bottom, bottom, attention=True), config.block(bottom, bottom)]
        )
        self.decoder = _decoder(shape[1], config, skips)
        top = config.multipliers[0] * config.channels
        self.norm_out = group_norm(top)
        self.conv_out = xavier_init(conv3x3(top, shape[0]), gain=NEAR_ZERO)

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
        embedding = self.embed(x, t, cond)
        h, image = self.conv_in(x), x
        skips, pyramid = [h], iter(self.pyramid)
        for block in self.encoder:
            h = self._run_block(block, h, embedding)
            if block.resample == "down" and self.pyramid:
                image = h = SKIP_SCALE * (h + next(pyramid)(image))
            skips.append(h)
        for block in self.middle:
            h = self._run_block(block, h, embedding)
        for block in self.decoder:
            if block.resample != "up":
                h = torch.cat([h, skips.pop()], dim=1)
            h = self._run_block(block, h, embedding)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out.to(x.dtype)

    def _run_block(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply a block; with `gradient_checkpointing` keep only its inputs.

        Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
        """
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(block, x, embedding, use_reentrant=False)
            return recomputed
        out: Tensor = block(x, embedding)
        return out


def _encoder(height: int, config: DDPMPPConfig) -> tuple[nn.ModuleList, list[int]]:
    """The blocks of the way down, and the channels of what they hand to the way up."""
    blocks = []
    widths = [config.channels]
    for level, multiplier in enumerate(config.multipliers):
        if level > 0:
            blocks.append(config.block(widths[-1], widths[-1], resample="down"))
            widths.append(widths[-1])
        attention = height >> level in config.attention_resolutions
        for _ in range(config.blocks):
            width = multiplier * config.channels
            blocks.append(config.block(widths[-1], width, attention=attention))
            widths.append(width)
    return nn.ModuleList(blocks), widths


def _pyramid(image_channels: int, config: DDPMPPConfig) -> nn.ModuleList:
    """The convolutions that carry the image from level to level; none in a standard encoder."""
    if config.encoder == "standard":
        return nn.ModuleList()
    widths = [image_channels, *(config.channels * m for m in config.multipliers[:-1])]
    return nn.ModuleList(
        xavier_init(DownsampleConv(inputs, outputs, kind=config.resample))
        for inputs, outputs in pairwise(widths)
    )


def _decoder(height: int, config: DDPMPPConfig, skips: list[int]) -> nn.ModuleList:
    """The blocks of the way up: all but the doubling ones take a skip, the newest first."""
    blocks = []
    skips = list(skips)
    width = skips[-1]
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        if level < len(config.multipliers) - 1:
            blocks.append(config.block(width, width, resample="up"))
        for place in range(config.blocks + 1):
            inputs = width + skips.pop()
            width = multiplier * config.channels
            attention = place == config.blocks and height >> level in config.attention_resolutions
            blocks.append(config.block(inputs, width, attention=attention))
    return nn.ModuleList(blocks)
