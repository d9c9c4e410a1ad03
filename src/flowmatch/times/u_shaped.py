"""The U-shaped density: more of both ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.times.density import TimeDensity, below_one


@dataclass(frozen=True)
class UShaped(TimeDensity):
    """Exponentially more of both ends, where rectified flows are hard after a reflow.

        p(t) = a cosh(a (t - 1/2)) / (2 sinh(a/2)),   t(u) = 1/2 + asinh((2u - 1) sinh(a/2)) / a

    Args:
        a: > 0; the ends are seen cosh(a/2) times as often as the middle.
    Source: Lee et al. 2024, "Improving the Training of Rectified Flows", section 4.1, here
    symmetric about 1/2.
    """

    a: float = 4.0
    kind: Literal["u_shaped"] = "u_shaped"

    def __post_init__(self) -> None:
        if not 0 < self.a <= 50:
            raise ValueError(f"u_shaped needs a in (0, 50], got {self.a}")

    def quantile(self, u: Tensor) -> Tensor:
        t = 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a
        return below_one(t.clamp(min=0))

    def density(self, t: Tensor) -> Tensor:
        return self.a * torch.cosh(self.a * (t - 0.5)) / (2 * math.sinh(self.a / 2))
