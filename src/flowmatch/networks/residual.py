"""The residual block of the U-Net: two convolutions that see the time in between."""

from __future__ import annotations

from torch import Tensor, nn

from flowmatch.networks.layers import Dropout, conv3x3, group_norm, zero_init


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around the embedding `e` of time and class.

        h = conv(silu(norm(x)))
        additive:     output = skip(x) + conv(dropout(silu(norm(h + e))))
        scale-shift:  output = skip(x) + conv(dropout(silu(norm(h) * (1 + e_scale) + e_shift)))

    The second convolution starts at zero, so that the block starts as its skip connection.

    Args:
        inputs: channels of the block's input.
        outputs: channels of its output; where they differ the skip is a 1x1 convolution.
        embedding: length of the embedding of time and class.
        dropout: probability of dropping a value before the second convolution.
        scale_shift: let the embedding scale and shift the second norm, instead of adding to its
            input.
    Source: Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3.1 (scale-shift, there
        "adaptive group normalisation").
    """

    def __init__(
        self, inputs: int, outputs: int, *, embedding: int, dropout: float, scale_shift: bool
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(group_norm(inputs), nn.SiLU(), conv3x3(inputs, outputs))
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, 2 * outputs if scale_shift else outputs)
        )
        self.out_layers = nn.Sequential(
            group_norm(outputs),
            nn.SiLU(),
            Dropout(dropout),
            zero_init(conv3x3(outputs, outputs)),
        )
        self.skip_connection = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, kernel_size=1)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, inputs, H, W] and the embedding [B, embedding] -> [B, outputs, H, W]."""
        h = self.in_layers(x)
        e = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            norm, activation, dropout, conv = self.out_layers
            scale, shift = e.chunk(2, dim=1)
            h = conv(dropout(activation(norm(h) * (1 + scale) + shift)))
        else:
            h = self.out_layers(h + e)
        out: Tensor = self.skip_connection(x) + h
        return out
