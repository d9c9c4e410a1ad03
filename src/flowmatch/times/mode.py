"""The mode density of Stable Diffusion 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.times.density import TimeDensity, below_one

_LARGEST = 2 / (math.pi - 2)
_BISECTIONS = 60


@dataclass(frozen=True)
class Mode(TimeDensity):
    """More of the middle (scale > 0) or of the ends (scale < 0), and never nothing anywhere.

        t(u) = u + scale (cos^2(pi u / 2) - 1 + u),   p(t) = 1 / t'(u)

    Args:
        scale: in [-1, 2/(pi - 2)], beyond which t would not rise with u; 0 is uniform.
    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 20 (its t=1 is
    noise).
    """

    scale: float = 1.29
    kind: Literal["mode"] = "mode"

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= _LARGEST:
            raise ValueError(f"mode needs -1 <= scale <= {_LARGEST:.4f}, got {self.scale}")

    def quantile(self, u: Tensor) -> Tensor:
        return below_one(u + self.scale * (u - torch.sin(math.pi / 2 * u) ** 2)).clamp(min=0)

    def density(self, t: Tensor) -> Tensor:
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(_BISECTIONS):  # the quantile has no inverse in closed form
            middle = (low + high) / 2
            below = self.quantile(middle) < t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        slope = 1 + self.scale * (1 - math.pi / 2 * torch.sin(math.pi * (low + high) / 2))
        return 1 / slope
