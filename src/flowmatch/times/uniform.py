"""The uniform density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.times.density import TimeDensity


@dataclass(frozen=True)
class Uniform(TimeDensity):
    """Every t equally often.  Source: Lipman et al. 2023; Liu et al. 2023."""

    kind: Literal["uniform"] = "uniform"

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
