"""The U-Net of ADM (Dhariwal & Nichol 2021): the field's usual network for images.

Modules and parameters carry the names that its reference code gives them, so that the checkpoints
of the field load without a table of renames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmatch.component import Component
from flowmatch.networks.attention import AttentionBlock, QKVOrder
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
from flowmatch.networks.embeddings import ClassEmbedding, TimeEmbedding, read_labels
from flowmatch.networks.layers import Downsample, Upsample, conv3x3, group_norm, zero_init
from flowmatch.networks.residual import ResidualBlock


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Component):
    """What a `UNet` is built from.

    Args:
        channels: channels of the first level; the embedding of time is four times as long.
        multipliers: channels of each level over `channels`. Each level after the first has half
            the height and width of the one before.
        blocks: residual blocks a level on the way down; on the way up it is one more.
        attention_resolutions: heights of the feature maps whose residual blocks attention follows.
            (The middle block always has attention.)
        heads: attention heads; 4 if neither this nor `head_channels` is given.
        head_channels: channels of a head, instead of `heads`.
        dropout: probability of dropping a value inside the residual blocks, in [0, 1).
        num_classes: number of classes without the null class; None for a network without classes.
        conditions: other conditions by name, whose embeddings are added to that of time.
        scale_shift: let time and class scale and shift the norms, instead of adding to their input.
            Wanted with 32 channels: their norms have one channel a group, and take out again
            whatever is added to a whole channel.
        qkv_order: how the outputs of `qkv` are grouped, see `AttentionBlock`. It matters only for
            weights from elsewhere.
        conv_resample: resample with convolutions; otherwise by mean and repetition.
        gradient_checkpointing: compute residual and attention blocks again in the backward pass
            instead of keeping their insides: less memory, more time.
        time_scale: what time is multiplied by inside its embedding.
    Raises:
        ValueError: a value is out of its range, or both `heads` and `head_channels` are given.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    heads: int | None = None
    head_channels: int | None = None
    dropout: float = 0.0
    num_classes: int | None = None
    conditions: Mapping[str, ConditionConfig] = field(default_factory=dict)
    scale_shift: bool = False
    qkv_order: QKVOrder = "new"
    conv_resample: bool = True
    gradient_checkpointing: bool = False
    time_scale: float = 1000.0
    kind: Literal["unet"] = "unet"

    def __post_init__(self) -> None:
        if self.heads is None and self.head_channels is None:
            object.__setattr__(self, "heads", 4)
        if self.heads is not None and self.head_channels is not None:
            raise ValueError(
                f"heads is {self.heads} and head_channels is {self.head_channels}; give one of"
                " them and leave the other None"
            )
        check_positive(self, "channels", "blocks", "heads", "head_channels")
        check_multipliers(self.multipliers)
        check_dropout(self.dropout)
        if self.qkv_order not in get_args(QKVOrder):
            raise ValueError(f"qkv_order is {self.qkv_order!r}; it must be 'new' or 'legacy'")
        check_conditions(self.num_classes, self.conditions)

    def build(self, shape: tuple[int, ...]) -> UNet:
        """The network for images of shape (C, H, W).

        Raises:
            ValueError: the shape does not fit the levels, attention or heads; see `UNet`.
        """
        return UNet(shape, self)

    def blocks_at(self, height: int, *, inputs: int, outputs: int) -> list[nn.Module]:
        """A residual block, and attention after it if `attention_resolutions` names `height`."""
        blocks: list[nn.Module] = [self.residual(inputs, outputs)]
        if height in self.attention_resolutions:
            blocks.append(self.attention(outputs))
        return blocks

    def residual(self, inputs: int, outputs: int) -> ResidualBlock:
        """A residual block between these numbers of channels."""
        return ResidualBlock(
            inputs,
            outputs,
            embedding=4 * self.channels,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
        )

    def attention(self, channels: int) -> AttentionBlock:
        """An attention block over this number of channels."""
        heads = self.heads
        if self.head_channels is not None:
            heads, rest = divmod(channels, self.head_channels)
            if rest:
                raise ValueError(
                    f"attention over {channels} channels cannot have heads of"
                    f" {self.head_channels}; choose head_channels that divides the channels"
                )
        assert heads is not None  # __post_init__ saw to it
        return AttentionBlock(channels, heads=heads, qkv_order=self.qkv_order)


class Stage(nn.ModuleList):
    """Blocks one after the other, of which the residual ones see the embedding too."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(blocks)

    def forward(self, x: Tensor, embedding: Tensor, *, recompute: bool = False) -> Tensor:
        """Apply the blocks to x [B, C, H, W].

        With `recompute`, residual and attention blocks keep only their inputs for the backward
        pass.  Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
        """
        for block in self:
            inputs = (x, embedding) if isinstance(block, ResidualBlock) else (x,)
            if recompute and isinstance(block, (ResidualBlock, AttentionBlock)):
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        return x


class UNet(Conditioned):
    """Residual blocks down to a small feature map and up again, with skips across.

    Every output of the way down (`input_blocks`) is concatenated to an input of the way up
    (`output_blocks`), last first. The last convolution starts at zero, and so does the output.

    It runs in the memory format of its input and weights: `net.to(memory_format=
    torch.channels_last)` is the caller's choice.

    Args:
        shape: (C, H, W) of the images.
        config: everything else.
    Raises:
        ValueError: `shape` is not (C, H, W), the levels do not divide H and W, an attention
            resolution never occurs, or heads do not divide the channels.
    Source: Dhariwal & Nichol 2021, section 3.
    """

    def __init__(self, shape: tuple[int, ...], config: UNetConfig) -> None:
        super().__init__()
        check_image_shape(
            shape,
            levels=len(config.multipliers),
            attention_resolutions=config.attention_resolutions,
        )
        self.config = config
        embedding = 4 * config.channels
        self.time_embed = TimeEmbedding(config.channels, embedding, scale=config.time_scale)
        self.label_emb: ClassEmbedding | None = None
        if config.num_classes is not None:
            self.label_emb = ClassEmbedding(config.num_classes, embedding)
        self.cond_emb: ConditionEmbedding | None = None
        if config.conditions:
            self.cond_emb = ConditionEmbedding(config.conditions, embedding)
        self.input_blocks, skips = _encoder(shape, config)
        bottom = skips[-1]
        self.middle_block = Stage(
            config.residual(bottom, bottom),
            config.attention(bottom),
            config.residual(bottom, bottom),
        )
        self.output_blocks = _decoder(shape, config, skips)
        top = config.multipliers[0] * config.channels
        self.out = nn.Sequential(group_norm(top), nn.SiLU(), zero_init(conv3x3(top, shape[0])))

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
        embedding = self.time_embed(t)
        if self.label_emb is not None:
            embedding = embedding + self.label_emb(labels)
        if self.cond_emb is not None:
            embedding = embedding + self.cond_emb(cond, x)
        recompute = self.config.gradient_checkpointing and torch.is_grad_enabled()

        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, embedding, recompute=recompute)
            skips.append(h)
        h = self.middle_block(h, embedding, recompute=recompute)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding, recompute=recompute)
        out: Tensor = self.out(h)
        return out.to(x.dtype)


def _encoder(shape: tuple[int, ...], config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the channels of each stage's output."""
    image_channels, height, _ = shape
    stages = [Stage(conv3x3(image_channels, config.channels))]
    widths = [config.channels]
    for level, multiplier in enumerate(config.multipliers):
        if level > 0:
            stages.append(Stage(Downsample(widths[-1], conv=config.conv_resample)))
            widths.append(widths[-1])
        for _ in range(config.blocks):
            width = multiplier * config.channels
            blocks = config.blocks_at(height >> level, inputs=widths[-1], outputs=width)
            stages.append(Stage(*blocks))
            widths.append(width)
    return nn.ModuleList(stages), widths


def _decoder(shape: tuple[int, ...], config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """The way up: each stage takes the newest of the skips, given by their channels."""
    stages = []
    skips = list(skips)
    width = skips[-1]
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        for _ in range(config.blocks + 1):
            inputs = width + skips.pop()
            width = multiplier * config.channels
            blocks = config.blocks_at(shape[1] >> level, inputs=inputs, outputs=width)
            stages.append(Stage(*blocks))
        if level > 0:
            stages[-1].append(Upsample(width, conv=config.conv_resample))
    return nn.ModuleList(stages)
