"""The trigonometric, variance-preserving path with exact ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.paths.affine import AffinePath


@dataclass(frozen=True)
class Trig(AffinePath):
    """`xt = sin(pi t/2) x1 + cos(pi t/2) x0`.

    Source: Albergo & Vanden-Eijnden 2023, "Building Normalizing Flows with Stochastic
    Interpolants", equation 5; the GVP path of Ma et al. 2024, "SiT".
    """

    kind: Literal["trig"] = "trig"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        # sin of the rest, not cos(pi t/2): exactly 0 at t=1 in floating point
        return torch.sin(math.pi / 2 * (1 - t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan2(torch.ones_like(ratio), ratio)
