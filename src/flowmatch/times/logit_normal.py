"""The logit-normal density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.times.density import TimeDensity, below_one


@dataclass(frozen=True)
class LogitNormal(TimeDensity):
    """`logit(t)` is normal: `t = sigmoid(mean + std z)`; the middle of the path is seen more often.

        p(t) = exp(-(logit(t) - mean)^2 / (2 std^2)) / (std sqrt(2 pi) t (1 - t))

    Args:
        mean: of logit(t); positive moves the draws towards the data (t=1).
        std: of logit(t), > 0.
    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 19 (its t=1 is noise,
    so its mean is minus ours).
    """

    mean: float = 0.0
    std: float = 1.0
    kind: Literal["logit_normal"] = "logit_normal"

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"logit_normal needs std > 0, got {self.std}")

    def quantile(self, u: Tensor) -> Tensor:
        return below_one(torch.sigmoid(self.mean + self.std * standard_normal_quantile(u)))

    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.std
        return torch.exp(-(z**2) / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))


def standard_normal_quantile(u: Tensor) -> Tensor:
    """The standard normal number below which a share `u` in [0, 1) lies; finite at 0 too."""
    far = 1 - torch.finfo(u.dtype).eps  # a draw of exactly 0 would be infinitely far out
    return math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-far, far))
