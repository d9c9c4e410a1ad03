"""The transformer block of a DiT: attention and a gated MLP, both steered by the embedding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flowmatch.networks.layers import Dropout, zero_init
from flowmatch.networks.rotary import rotate

EPS = 1e-6


def xavier_init(layer: nn.Linear) -> nn.Linear:
    """Draw weights uniformly with variance 2 / (inputs + outputs); start the bias at zero.

    Source: Glorot & Bengio 2010, equation 16.
    """
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def swiglu_width(width: int) -> int:
    """Hidden units of a SwiGLU with the parameters of the usual MLP of 4 * `width` hidden units.

    Three matrices `width x hidden` are as large as two `width x 4 width` if hidden is 8/3 `width`;
    it is rounded to a multiple of 8, as tensor cores want.

    Source: Shazeer 2020, section 2.
    """
    return max(1, round(width / 3)) * 8


class SwiGLU(nn.Module):
    """An MLP whose hidden units are gated by a second set of them.

        output = W_out (silu(W_gate x) * W_up x)

    Source: Shazeer 2020, equation 6.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = swiglu_width(width)
        self.gate_up = xavier_init(nn.Linear(width, 2 * hidden, bias=False))
        self.out = xavier_init(nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * up)
        return out


class RotaryAttention(nn.Module):
    """Multi-head self-attention whose queries and keys are normalised, then turned by position.

        output = W_o softmax(q k^T / sqrt(channels)) v,   q = rotate(norm(W_q x)),  k likewise

    Norm and rotation are computed in float32 under autocast too. Forward-mode derivatives
    (`torch.func.jvp`) exist for PyTorch's plain kernel alone: take them under
    `sdpa_kernel(SDPBackend.MATH)`.

    Args:
        width: length of a token.
        heads: number of heads; `width / heads` is divisible by 4.
        qk_norm: divide queries and keys by their root mean square over the head; else leave them.
    Source: Vaswani et al. 2017, eq. 1; Su et al. 2021; Dehghani et al. 2023, section 2 (norm).
    """

    def __init__(self, width: int, *, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = xavier_init(nn.Linear(width, 3 * width))
        self.q_norm = nn.RMSNorm(width // heads, eps=EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width // heads, eps=EPS) if qk_norm else nn.Identity()
        self.proj_out = xavier_init(nn.Linear(width, width))

    def forward(self, x: Tensor, rotation: Tensor, seen: Tensor | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width].

        Args:
            x: tokens.
            rotation: what `axial_rotation` gives, [2, T, width / heads / 2].
            seen: [B, T] bool, the tokens that are attended to; None for all.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q = rotate(self.q_norm(q.to(rotation.dtype)), rotation).to(v.dtype)
        k = rotate(self.k_norm(k.to(rotation.dtype)), rotation).to(v.dtype)
        mask = None if seen is None else seen[:, None, None]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.proj_out(h.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Attention and MLP as residuals, each with its norm shifted and scaled and its output gated.

        x <- x + gate_1 * attention((1 + scale_1) * norm(x) + shift_1)
        x <- x + gate_2 *       mlp((1 + scale_2) * norm(x) + shift_2)

    Shifts, scales and gates are a linear map of the embedding that starts at zero ("adaLN-zero"),
    and so the block starts as the identity. The norms are root mean squares without gains of their
    own.

    Args:
        width, heads, qk_norm: see `RotaryAttention`; the embedding is `width` long too.
        dropout: probability of dropping a value of either residual.
    Source: Peebles & Xie 2023, section 3.2; Zhang & Sennrich 2019 (RMSNorm).
    """

    def __init__(self, width: int, *, heads: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), zero_init(nn.Linear(width, 6 * width)))
        self.norm = nn.RMSNorm(width, eps=EPS, elementwise_affine=False)
        self.attention = RotaryAttention(width, heads=heads, qk_norm=qk_norm)
        self.attention_dropout = Dropout(dropout)
        self.mlp = SwiGLU(width)
        self.mlp_dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, embedding: Tensor, rotation: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """Tokens [B, T, width] and the embedding [B, width] -> [B, T, width]."""
        modulation = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
        h = self.attention((1 + scale_1) * self.norm(x) + shift_1, rotation, seen)
        x = x + gate_1 * self.attention_dropout(h)
        h = self.mlp((1 + scale_2) * self.norm(x) + shift_2)
        out: Tensor = x + gate_2 * self.mlp_dropout(h)
        return out


class FinalLayer(nn.Module):
    """A norm that the embedding shifts and scales, then a linear map that starts at zero.

    Source: Peebles & Xie 2023, section 3.2.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), zero_init(nn.Linear(width, 2 * width)))
        self.norm = nn.RMSNorm(width, eps=EPS, elementwise_affine=False)
        self.out = zero_init(nn.Linear(width, outputs))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, T, width] and the embedding [B, width] -> [B, T, outputs]."""
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        out: Tensor = self.out((1 + scale) * self.norm(x) + shift)
        return out
