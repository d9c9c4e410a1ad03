"""What the sequence of a DiT is made of: patches of the image, and the tokens before them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowmatch.networks.conditions import Text
from flowmatch.networks.transformer import xavier_init


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images [B, C, H, W] into patches, row by row: [B, H / patch * W / patch, C * patch^2].

    Source: Dosovitskiy et al. 2021, section 3.1.
    """
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `patchify`, for a grid of so many rows and columns of patches."""
    values = patches.transpose(1, 2)
    return F.pixel_shuffle(values.reshape(*values.shape[:2], *grid), patch)


class PatchEmbedding(nn.Sequential):
    """A linear map of the patches; with `rank`, the product of two with so few values between.

    The pixels of large patches lie near a space of few dimensions, which noise fills evenly: a
    bottleneck lets the ones through and takes most of the other off.

    Args:
        values: values of a patch.
        width: length of a token.
        rank: values between the two maps; None for one map.
    Source: Dosovitskiy et al. 2021, equation 1; Li & He 2025 (JiT: the bottleneck).
    """

    def __init__(self, values: int, width: int, *, rank: int | None = None) -> None:
        layers = [xavier_init(nn.Linear(rank or values, width))]
        if rank is not None:
            layers.insert(0, xavier_init(nn.Linear(values, rank, bias=False)))
        super().__init__(*layers)


class TextTokens(nn.Module):
    """The tokens of a text, normalised and projected, behind one learned token.

    The learned token stands for whatever padding the text has, or for a text that is absent.
    Padding itself is not attended to: to what length a batch is padded changes no sample, and an
    absent text is the same whether it is left out or given as NaN.
    """

    def __init__(self, config: Text, width: int) -> None:
        super().__init__()
        self.padding = nn.Parameter(torch.randn(width) * 0.02)
        self.norm = nn.LayerNorm(config.dim)
        self.out = xavier_init(nn.Linear(config.dim, width))

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """[B, tokens, dim] -> [B, 1 + tokens, width], and which are seen, [B, 1 + tokens] bool."""
        padding = value.isnan().any(2)
        value = torch.where(padding[..., None], 0.0, value).to(self.out.weight.dtype)
        tokens = self.out(self.norm(value))
        learned = self.padding.to(tokens.dtype).expand(len(value), 1, -1)
        return torch.cat([learned, tokens], dim=1), F.pad(~padding, (1, 0), value=True)


class PrefixTokens(nn.Module):
    """The tokens before the patches: learned registers, then the texts.

    They have no place in the image. Registers are room for what concerns the whole image, which
    the tokens of dull patches would be taken for otherwise.

    Args:
        registers: their number.
        texts: the conditions that are texts, by name.
        width: length of a token.
    Source: Darcet et al. 2024 (registers); Esser et al. 2024, section 4 (texts in the sequence).
    """

    def __init__(self, registers: int, texts: Mapping[str, Text], width: int) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.randn(registers, width) * 0.02) if registers else None
        self.texts = nn.ModuleDict({name: TextTokens(text, width) for name, text in texts.items()})

    def forward(self, patches: Tensor, texts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Put them before patches [B, N, width].

        Args:
            patches: the tokens of the patches.
            texts: the value of each text, [B, tokens, dim] by name.
        Returns:
            The sequence [B, T, width] in the dtype of `patches`, and which of its tokens are to be
            attended to, [B, T] bool; None for all.
        """
        parts, seen = [], []
        if self.registers is not None:
            parts.append(self.registers.expand(len(patches), -1, -1))
            seen.append(patches.new_ones(parts[0].shape[:2], dtype=torch.bool))
        for name, layer in self.texts.items():
            tokens, there = layer(texts[name])
            parts.append(tokens)
            seen.append(there)
        sequence = torch.cat([*(part.to(patches.dtype) for part in parts), patches], dim=1)
        if not self.texts:
            return sequence, None
        return sequence, F.pad(torch.cat(seen, dim=1), (0, patches.shape[1]), value=True)
