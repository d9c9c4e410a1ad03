"""The beta density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from flowmatch.times.density import TimeDensity, below_one

_KNOTS = 8193
_FAR = 40.0  # of logit(u), beyond what float64 can tell from 0 or 1


@dataclass(frozen=True)
class Beta(TimeDensity):
    """`p(t) = t^(a - 1) (1 - t)^(b - 1) / B(a, b)`.

    Args:
        a: > 0; below 1 the density grows without limit at t=0.
        b: > 0; below 1 at t=1.
    Source: Black et al. 2024, "pi_0", appendix B, trains with a beta density over time.
    """

    a: float = 1.5
    b: float = 1.5
    kind: Literal["beta"] = "beta"

    def __post_init__(self) -> None:
        if not (0.05 <= self.a <= 100 and 0.05 <= self.b <= 100):
            raise ValueError(f"beta needs a and b in [0.05, 100], got {self.a} and {self.b}")

    def quantile(self, u: Tensor) -> Tensor:
        # between knots in the logits of both, in which tails are straight lines
        knots = _logits(self.a, self.b).to(u)
        place = (torch.logit(u.clamp(min=torch.finfo(u.dtype).tiny)) / _FAR + 1) / 2 * (_KNOTS - 1)
        place = place.clamp(0, _KNOTS - 1)
        left = place.long().clamp(max=_KNOTS - 2)
        return below_one(torch.sigmoid(torch.lerp(knots[left], knots[left + 1], place - left)))

    def density(self, t: Tensor) -> Tensor:
        log_beta = math.lgamma(self.a) + math.lgamma(self.b) - math.lgamma(self.a + self.b)
        log_t, log_rest = torch.log(t), torch.log1p(-t)
        return torch.exp((self.a - 1) * log_t + (self.b - 1) * log_rest - log_beta)


@lru_cache(maxsize=8)
def _logits(a: float, b: float) -> Tensor:
    """`logit(t)` at evenly spaced `logit(u)` from -40 to 40, float64."""
    logit_u = np.linspace(-_FAR, _FAR, _KNOTS)
    # each half from its own end: 1 - u and 1 - t lose their digits near 1
    low = np.exp(-np.logaddexp(0, -logit_u[logit_u <= 0]))
    high = np.exp(-np.logaddexp(0, logit_u[logit_u > 0]))
    t, rest = betaincinv(a, b, low), betaincinv(b, a, high)
    tiny = np.finfo(np.float64).tiny
    left = np.log(np.maximum(t, tiny)) - np.log1p(-t)
    right = np.log1p(-rest) - np.log(np.maximum(rest, tiny))
    return torch.from_numpy(np.concatenate([left, right]))
