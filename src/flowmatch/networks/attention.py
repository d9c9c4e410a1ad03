"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from flowmatch.networks.layers import group_norm, zero_init

QKVOrder = Literal["new", "legacy"]


class AttentionBlock(nn.Module):
    """Residual multi-head self-attention, in which each pixel is a token.

        output = x + W_o softmax(q k^T / sqrt(ch)) v,   (q, k, v) = W_qkv norm(x)

    Tokens are laid out [B, T, C], which is a view of a `channels_last` feature map: in that memory
    format the block copies nothing on its way in or out. Forward-mode derivatives
    (`torch.func.jvp`) exist for PyTorch's plain kernel alone: take them under
    `sdpa_kernel(SDPBackend.MATH)`.

    Args:
        channels: channels of the feature map.
        heads: number of heads, each of `channels / heads` channels.
        qkv_order: how the 3C outputs of `qkv` are grouped. "new": all q, all k, all v, each by
            head; "legacy": head by head, each its q, k, v (checkpoints with
            `use_new_attention_order: false`, the default of guided-diffusion).
    Raises:
        ValueError: `heads` does not divide `channels`.
    Source: Vaswani et al. 2017, eq. 1; Dhariwal & Nichol 2021, section 3.
    """

    def __init__(self, channels: int, *, heads: int, qkv_order: QKVOrder = "new") -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"attention over {channels} channels cannot have {heads} heads; choose a number of"
                " heads that divides the channels"
            )
        self.heads = heads
        self.qkv_order = qkv_order
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        h = F.scaled_dot_product_attention(*self._split_heads(self.qkv(tokens)))
        h = self.proj_out(h.transpose(1, 2).flatten(2))
        out: Tensor = x + h.transpose(1, 2).view(x.shape)
        return out

    def _split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, 3C] -> q, k, v, each a view [B, heads, T, C / heads]."""
        if self.qkv_order == "new":
            q, k, v = qkv.view(*qkv.shape[:2], 3, self.heads, -1).unbind(2)
        else:
            q, k, v = qkv.view(*qkv.shape[:2], self.heads, 3, -1).unbind(3)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
