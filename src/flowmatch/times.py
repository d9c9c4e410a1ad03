"""Times: the densities that training draws t from.

A density is given by its quantile function: the caller brings uniform numbers (one generator a
sample, a stratified set, ...) and the density bends them. Which t are seen how often is decided
here alone; how much each counts is the loss's weighting, a separate thing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowmatch.component import Component


@dataclass(frozen=True)
class TimeDensity(Component, ABC):
    """A probability density on (0, 1)."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The t below which a share `u` of all draws lies.  [B] in (0, 1) -> [B] in (0, 1)"""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """The probability density at `t`, which integrates to 1 over (0, 1).  [B] -> [B]"""

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws, [n] float32, on the generator's device."""
        device = generator.device if generator is not None else None
        return self.quantile(torch.rand(n, generator=generator, device=device))


@dataclass(frozen=True)
class Uniform(TimeDensity):
    """Every t equally often.  Source: Lipman et al. 2023; Liu et al. 2023."""

    kind: Literal["uniform"] = "uniform"

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


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
        # a draw of exactly 0 would be infinitely far out
        far = 1 - torch.finfo(u.dtype).eps
        z = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-far, far))
        return torch.sigmoid(self.mean + self.std * z)

    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.std
        return torch.exp(-(z**2) / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))


TimeConfig = Annotated[Uniform | LogitNormal, Field(discriminator="kind")]
