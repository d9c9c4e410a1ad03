"""The density that turns a straight path's times into a cosine schedule's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.times.density import TimeDensity, below_one


@dataclass(frozen=True)
class CosMap(TimeDensity):
    """The ratios of noise to data that the cosine schedule sees, on a linear path.

        t(u) = sin(pi u/2) / (sin(pi u/2) + cos(pi u/2)),   p(t) = 2 / (pi (1 - 2 t + 2 t^2))

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 21.
    """

    kind: Literal["cosmap"] = "cosmap"

    def quantile(self, u: Tensor) -> Tensor:
        data, noise = torch.sin(math.pi / 2 * u), torch.sin(math.pi / 2 * (1 - u))
        return below_one(data / (data + noise))

    def density(self, t: Tensor) -> Tensor:
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2))
