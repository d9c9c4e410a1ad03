"""What a network knows besides x: the time and the class, as vectors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_embedding(
    t: Tensor, dim: int, *, scale: float = 1000.0, endpoint: bool = False
) -> Tensor:
    """Cosines and sines of time at `dim // 2` frequencies, spaced evenly in the logarithm.

        [cos(scale t w_i), sin(scale t w_i)],   w_i = 10000^(-i / half),   i = 0 .. half - 1

    Args:
        t: times [B], float32 or wider. The embedding is computed in this precision, under autocast
            too: at scale 1000, bf16 would leave the fastest phases to chance.
        dim: length of the embedding; an odd one ends in a zero.
        scale: what time is multiplied by. With 1000, [0, 1] spans the range of the discrete time
            steps that the field's diffusion networks count in.
        endpoint: divide i by half - 1, so that the last frequency is 1/10000 (Ho et al. 2020).
    Returns:
        [B, dim] in the dtype of `t`.
    Source: Vaswani et al. 2017, section 3.5; cosines first as in Dhariwal & Nichol 2021.
    """
    half = dim // 2
    index = torch.arange(half, dtype=t.dtype, device=t.device)
    frequencies = torch.exp(-math.log(10_000) * index / max(half - endpoint, 1))
    phases = (scale * t)[:, None] * frequencies
    return F.pad(torch.cat([phases.cos(), phases.sin()], dim=1), (0, dim % 2))


class FourierEmbedding(nn.Module):
    """Cosines and sines of time at random frequencies, drawn once and kept.

        [cos(2 pi scale t g_i), sin(2 pi scale t g_i)],   g_i ~ N(0, 1)

    Args:
        dim: length of the result, even.
        scale: standard deviation of the frequencies, in turns per unit of time.
    Source: Tancik et al. 2020, equation 5; for time, Song et al. 2021, appendix H.
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(dim // 2))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times [B], float32 or wider, as [B, dim] in the dtype of `t`."""
        phases = 2 * math.pi * t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([phases.cos(), phases.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """A sinusoidal embedding of time, then Linear, SiLU, Linear.

    Args:
        features: length of the sinusoidal embedding.
        width: length of the result.
        scale: what time is multiplied by before its sines are taken.
    Source: Ho et al. 2020, appendix B.
    """

    def __init__(self, features: int, width: int, *, scale: float = 1000.0) -> None:
        super().__init__(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.features = features
        self.scale = scale

    def forward(self, t: Tensor) -> Tensor:
        """Embed times [B], float32 or wider, as [B, width] in the dtype of the weights."""
        h = sinusoidal_embedding(t, self.features, scale=self.scale)
        h = h.to(next(self.parameters()).dtype)
        for layer in self:
            h = layer(h)
        return h


class ClassEmbedding(nn.Embedding):
    """One learned vector a class, and a last one for the null class, which is `num_classes`.

    Source: Ho & Salimans 2022 (classifier-free guidance), section 3.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__(num_classes + 1, dim)


def read_labels(
    cond: Mapping[str, Tensor] | None,
    x: Tensor,
    *,
    num_classes: int | None,
    others: Collection[str] = (),
) -> Tensor | None:
    """The labels [B] that a network conditions on, or None if it takes no class.

    Only names are checked: to look at the values would make the host wait for the device.

    Args:
        cond: None, or `{"label": int64 [B]}` with values in [0, num_classes], of which
            `num_classes` is the null class, and other conditions. A class-conditional network reads
            a missing label as the null class.
        x: the batch that the labels belong to.
        num_classes: number of classes of the network, None if it takes no class.
        others: names of the network's other conditions.
    Raises:
        ValueError: `cond` has a name that the network does not know.
    """
    known = [*([] if num_classes is None else ["label"]), *others]
    if unknown := [name for name in cond or () if name not in known]:
        raise ValueError(_unknown_condition(unknown, known))
    if num_classes is None:
        return None
    if cond and "label" in cond:
        return cond["label"]
    return torch.full((len(x),), num_classes, device=x.device)


def _unknown_condition(names: list[str], known: list[str]) -> str:
    if not known:
        return (
            f"cond has {names}, but this network is unconditional; pass cond=None, or build the"
            " network with num_classes or conditions"
        )
    only = ", ".join(repr(name) for name in known)
    return f"cond has {names}, but this network knows only {only}; leave the rest out of cond"
