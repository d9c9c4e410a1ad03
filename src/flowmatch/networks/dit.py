"""The diffusion transformer (Peebles & Xie 2023) with the parts that the field has since agreed on.

Root-mean-square norms, also of queries and keys, gated MLPs, rotary positions and registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmatch.component import Component
from flowmatch.networks.checks import check_dropout, check_positive
from flowmatch.networks.conditions import (
    ConditionConfig,
    Conditioned,
    ConditionEmbedding,
    Text,
    check_conditions,
)
from flowmatch.networks.embeddings import ClassEmbedding, TimeEmbedding, read_labels
from flowmatch.networks.rotary import axial_rotation
from flowmatch.networks.tokens import PatchEmbedding, PrefixTokens, patchify, unpatchify
from flowmatch.networks.transformer import FinalLayer, TransformerBlock

Size = Literal["S", "B", "L", "XL"]
Patch = Literal[1, 2, 4, 8, 16]

SIZES: dict[Size, tuple[int, int, int]] = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
"""Width, depth and heads of the named sizes.  Source: Peebles & Xie 2023, table 1."""

TIME_FEATURES = 256
"""Length of the sinusoidal embedding of time."""


@dataclass(frozen=True, kw_only=True)
class DiTConfig(Component):
    """What a `DiT` is built from.

    Args:
        size: a named size, which gives `width`, `depth` and `heads` where these are left out
            themselves; if it is left out too, it is S.
        width: length of a token, and of the embedding of time and conditions.
        depth: number of blocks.
        heads: attention heads; `width` is divisible by four times their number.
        patch: height and width of a patch: 1, 2 or 4 for latents and small images, 16 for images
            of 256 pixels.
        patch_rank: values that a patch is squeezed into before it becomes a token, which large
            patches of pixels want (128 with patch 16); None for no squeeze.
        registers: learned tokens beside the patches.
        qk_norm: normalise queries and keys, without which bf16 training of large sizes may diverge.
        dropout: probability of dropping a value of what a block adds, in [0, 1).
        num_classes: number of classes without the null class; None for a network without classes.
        conditions: other conditions by name, whose embeddings are added to that of time. The tokens
            of texts join the sequence besides.
        gradient_checkpointing: compute blocks again in the backward pass instead of keeping their
            insides: less memory, more time.
        time_scale: what time is multiplied by inside its embedding.
    Raises:
        ValueError: a value is out of its range, or the heads do not suit the width.
    """

    size: Size | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: Patch = 2
    patch_rank: int | None = None
    registers: int = 0
    qk_norm: bool = True
    dropout: float = 0.0
    num_classes: int | None = None
    conditions: Mapping[str, ConditionConfig] = field(default_factory=dict)
    gradient_checkpointing: bool = False
    time_scale: float = 1000.0
    kind: Literal["dit"] = "dit"

    def __post_init__(self) -> None:
        if self.size is not None and self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}; it must be one of {', '.join(SIZES)}")
        if self.patch not in get_args(Patch):
            raise ValueError(f"patch is {self.patch}; it must be one of {get_args(Patch)}")
        check_positive(self, "width", "depth", "heads", "patch_rank")
        if self.registers < 0:
            raise ValueError(f"registers is {self.registers}; it must be at least 0")
        check_dropout(self.dropout)
        check_conditions(self.num_classes, self.conditions)
        width, _, heads = self.dimensions
        if width % (4 * heads):
            raise ValueError(
                f"width {width} cannot have {heads} heads: rotary positions want heads of a"
                f" multiple of 4 channels; choose a width divisible by {4 * heads}, or other heads"
            )

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """Width, depth and heads: as given, or those of `size`."""
        width, depth, heads = SIZES[self.size or "S"]
        return self.width or width, self.depth or depth, self.heads or heads

    def build(self, shape: tuple[int, ...]) -> DiT:
        """The network for images or latents of shape (C, H, W).

        Raises:
            ValueError: the shape is not (C, H, W), or `patch` does not divide H and W.
        """
        return DiT(shape, self)


class DiT(Conditioned):
    """A transformer over the patches of an image, steered by time and conditions.

        tokens = [registers, texts, W_in patches],   output = unpatchify(final(blocks(tokens)))

    Position is known to attention alone, as rotations by row and column, so that images may have
    other sizes than those it was built for. Blocks start as the identity, and the output at zero.
    The sequence is carried in the dtype of `x`: under autocast to bf16, sums over many blocks stay
    in float32.

    Args:
        shape: (C, H, W) of the images.
        config: everything else.
    Raises:
        ValueError: `shape` is not (C, H, W), or patches do not divide H and W.
    Source: Peebles & Xie 2023, section 3.
    """

    def __init__(self, shape: tuple[int, ...], config: DiTConfig) -> None:
        super().__init__()
        _check_shape(shape, config.patch)
        self.config = config
        width, depth, heads = config.dimensions
        values = shape[0] * config.patch**2

        self.time_embed = TimeEmbedding(TIME_FEATURES, width, scale=config.time_scale)
        self.label_emb: ClassEmbedding | None = None
        if config.num_classes is not None:
            self.label_emb = ClassEmbedding(config.num_classes, width)
        self.cond_emb: ConditionEmbedding | None = None
        if config.conditions:
            self.cond_emb = ConditionEmbedding(config.conditions, width)
        for embedding in (self.time_embed, self.label_emb, self.cond_emb):
            if embedding is not None:
                _small_init(embedding)

        self.patch_embed = PatchEmbedding(values, width, rank=config.patch_rank)
        texts = {name: c for name, c in config.conditions.items() if isinstance(c, Text)}
        self.prefix = PrefixTokens(config.registers, texts, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads=heads, qk_norm=config.qk_norm, dropout=config.dropout)
            for _ in range(depth)
        )
        self.final = FinalLayer(width, values)

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
        texts: dict[str, Tensor] = {}
        if self.label_emb is not None:
            embedding = embedding + self.label_emb(labels)
        if self.cond_emb is not None:
            embedding = embedding + self.cond_emb(cond, x)
            texts = {name: self.cond_emb.value_of(name, cond, x) for name in self.prefix.texts}
        recompute = self.config.gradient_checkpointing and torch.is_grad_enabled()

        patch = self.config.patch
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        patches = self.patch_embed(patchify(x, patch)).to(x.dtype)
        h, seen = self.prefix(patches, texts)
        first = h.shape[1] - patches.shape[1]
        width, _, heads = self.config.dimensions
        rotation = axial_rotation(grid, width // heads, first=first, like=x)
        for block in self.blocks:
            if recompute:
                h = checkpoint(block, h, embedding, rotation, seen, use_reentrant=False)
            else:
                h = block(h, embedding, rotation, seen)
        out = unpatchify(self.final(h[:, first:], embedding), grid, patch)
        return out.to(x.dtype)


def _small_init(module: nn.Module) -> None:
    """Draw the matrices of an embedding with a standard deviation of 0.02, whatever their size.

    Time, class and conditions start equally strong then, and weak.
    """
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)


def _check_shape(shape: tuple[int, ...], patch: int) -> None:
    """Refuse a shape that patches do not tile.

    Raises:
        ValueError: `shape` is not (C, H, W), or `patch` does not divide H and W.
    """
    if len(shape) != 3:
        raise ValueError(
            f"a DiT takes images of shape (C, H, W), got {tuple(shape)}; for vectors use an MLP"
        )
    _, height, width = shape
    if height % patch or width % patch:
        fitting = [p for p in get_args(Patch) if height % p == 0 and width % p == 0]
        above = [-(-side // patch) * patch for side in (height, width)]
        raise ValueError(
            f"patches of {patch} x {patch} do not tile images of {height} x {width}; choose patch"
            f" {' or '.join(map(str, fitting))}, or resize or pad the images to"
            f" {above[0]} x {above[1]}"
        )
