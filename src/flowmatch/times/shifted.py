"""Another density, shifted for the resolution of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowmatch.times.density import TimeDensity, below_one
from flowmatch.times.logit_normal import LogitNormal
from flowmatch.times.plain import PlainTime


@dataclass(frozen=True, kw_only=True)
class Shifted(TimeDensity):
    """The draws t of another density, moved: `t' = t / (t + shift (1 - t))`.

    A larger image needs more noise to be hidden as well; the shift `sqrt(pixels / pixels before)`
    carries a density over from one resolution to another.

    Args:
        shift: > 0; above 1 moves the draws towards the noise (t=0).
        of: the density that is shifted.
    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 23 (its t=1 is
    noise).
    """

    shift: float = 3.0
    of: PlainTime = LogitNormal()
    kind: Literal["shifted"] = "shifted"

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"a shifted time needs shift > 0, got {self.shift}")
        if self.of.by_ratio:
            raise ValueError(
                f"{self.of.kind} is a density of noise over data; to shift it, add ln(shift) ="
                f" {math.log(self.shift):.3g} to its mean instead"
            )

    def quantile(self, u: Tensor) -> Tensor:
        t = self.of.quantile(u)
        return below_one(t / (t + self.shift * (1 - t)))

    def density(self, t: Tensor) -> Tensor:
        below = 1 - t + self.shift * t
        return self.of.density(self.shift * t / below) * self.shift / below**2
