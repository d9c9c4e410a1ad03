"""The straight path of rectified flow and conditional optimal transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.paths.affine import AffinePath


@dataclass(frozen=True)
class Linear(AffinePath):
    """`xt = t x1 + (1 - t) x0`, with the constant velocity `x1 - x0`.

    Source: Liu et al. 2023, "Flow Straight and Fast", equation 1; Lipman et al. 2023,
    "Flow Matching for Generative Modeling", equation 20 with sigma_min = 0.
    """

    kind: Literal["linear"] = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + ratio)
