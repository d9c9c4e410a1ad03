"""The blocks of the EDM2 U-Net: residual branches and attention that keep magnitudes.

Outputs, whose magnitudes are near 1, are not clipped at 256, as the published code does for fp16.

Source: Karras et al. 2024 (EDM2), config G, figure 2 and appendix B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowmatch.networks.layers import Dropout
from flowmatch.networks.magnitude import (
    MPConv,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    pixel_norm,
)

BRANCH_WEIGHT = 0.3
"""Weight of a residual branch, or of attention, in its sum with the main path."""

SKIP_WEIGHT = 0.5
"""Weight of a skip in its concatenation with the main path."""


class MPAttention(nn.Module):
    """Multi-head self-attention whose queries, keys and values have magnitude 1.

        output = mp_sum(x, W_o softmax(q k^T / sqrt(ch)) v),   (q, k, v) = normalize(W_qkv x)

    The norm is taken over the `ch` channels of a head, so q k^T / ch is the cosine of the angle.

    Args:
        channels: channels of the feature map.
        heads: number of heads, each of `ch = channels / heads` channels.
    """

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        assert channels % heads == 0
        self.heads = heads
        self.qkv = MPLinear(channels, 3 * channels)
        self.proj = MPLinear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(*tokens.shape[:2], 3, self.heads, -1)
        q, k, v = normalize(qkv, -1).transpose(1, 3).unbind(2)
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.proj(h.transpose(1, 2).flatten(2))
        return mp_sum(x, h.transpose(1, 2).view(x.shape), t=BRANCH_WEIGHT)


class MPBranch(nn.Module):
    """Two convolutions, with the embedding `e` of time and class as a factor in between.

        branch(x) = conv(dropout(mp_silu(conv(mp_silu(x)) * (1 + gain W e))))

    The gain is learned from zero: in the beginning the embedding says nothing.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        embedding: length of the embedding.
        dropout: probability of dropping a value before the second convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, embedding: int, dropout: float) -> None:
        super().__init__()
        self.conv_in = MPConv(inputs, outputs, kernel=3)
        self.embed = MPLinear(embedding, outputs)
        self.gain = nn.Parameter(torch.zeros(()))
        self.dropout = Dropout(dropout)
        self.conv_out = MPConv(outputs, outputs, kernel=3)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, inputs, H, W] and the embedding [B, embedding] -> [B, outputs, H, W]."""
        h = self.conv_in(mp_silu(x))
        factor = 1 + self.embed(embedding, self.gain)[:, :, None, None]
        out: Tensor = self.conv_out(self.dropout(mp_silu(h * factor.to(h.dtype))))
        return out


def _project(inputs: int, outputs: int) -> nn.Module:
    """What takes the main path from `inputs` to `outputs` channels."""
    return nn.Identity() if inputs == outputs else MPConv(inputs, outputs, kernel=1)


class EncoderBlock(nn.Module):
    """A block of the way down, which starts with a pixel norm of the main path.

        x <- pixel_norm(project(resample(x)));   x <- mp_sum(x, branch(x, e));   attention(x)

    Args:
        inputs: channels of the input.
        outputs: channels of the output; where they differ `project` is a 1x1 convolution.
        embedding: length of the embedding of time and class.
        dropout: see `MPBranch`.
        resample: changes the size of the feature map before all else.
        attention: follows the branch.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        embedding: int,
        dropout: float,
        resample: nn.Module | None = None,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample or nn.Identity()
        self.project = _project(inputs, outputs)
        self.branch = MPBranch(outputs, outputs, embedding=embedding, dropout=dropout)
        self.attention = attention or nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, inputs, H, W] and the embedding -> [B, outputs, H', W']."""
        x = pixel_norm(self.project(self.resample(x)))
        x = mp_sum(x, self.branch(x, embedding), t=BRANCH_WEIGHT)
        out: Tensor = self.attention(x)
        return out


class DecoderBlock(nn.Module):
    """A block of the way up, or between, which may take a skip.

        x <- mp_cat(resample(x), skip);   x <- mp_sum(project(x), branch(x, e));   attention(x)

    Args:
        inputs: channels of the input.
        outputs: channels of the output; where it differs from those that come in, `project` is a
            1x1 convolution.
        skip: channels of the skip, 0 for none.
        embedding, dropout, resample, attention: see `EncoderBlock`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        embedding: int,
        dropout: float,
        skip: int = 0,
        resample: nn.Module | None = None,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.takes_skip = skip > 0
        self.resample = resample or nn.Identity()
        self.project = _project(inputs + skip, outputs)
        self.branch = MPBranch(inputs + skip, outputs, embedding=embedding, dropout=dropout)
        self.attention = attention or nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        """[B, inputs, H, W], the embedding and [B, skip, H', W'] -> [B, outputs, H', W']."""
        x = self.resample(x)
        if skip is not None:
            x = mp_cat(x, skip, t=SKIP_WEIGHT)
        x = mp_sum(self.project(x), self.branch(x, embedding), t=BRANCH_WEIGHT)
        out: Tensor = self.attention(x)
        return out
