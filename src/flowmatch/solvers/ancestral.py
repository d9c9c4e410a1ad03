"""Ancestral sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.on_path import OnPath, Point
from flowmatch.solvers.stochastic import Stochastic


@dataclass(frozen=True, kw_only=True)
class Ancestral(Stochastic):
    """Draws from the posterior of the next state, given the data prediction: DDIM with noise.

        x_s = alpha_s x1 + sqrt(sigma_s^2 - u^2) x0 + u z,
        u = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)

    1 field call a step. With eta = 1 the steps are those of DDPM, and the first one from t=0 keeps
    nothing of its noise.

    Args:
        eta: share of the posterior's standard deviation, in [0, 1]; 0 is DDIM.
    Source: Song et al. 2021, "Denoising Diffusion Implicit Models", equations 12 and 16; Ho et al.
    2020, "DDPM", equation 7.
    """

    eta: float = 1.0
    kind: Literal["ancestral"] = "ancestral"
    order: ClassVar[int] = 1
    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"ancestral needs eta in [0, 1], got {self.eta}")

    def noisy_step(self, f: OnPath, x: Tensor, here: Point, end: Point, k: int) -> Tensor:
        v = f(x, here.t)
        if here.stands_still:
            return here.jump(x, v, end)
        kept = here.alpha * end.sigma / (end.alpha * here.sigma)
        fresh = self.eta * end.sigma * math.sqrt(max(0.0, 1 - kept**2))
        left = math.sqrt(max(0.0, end.sigma**2 - fresh**2))
        x = here.x1(x, v).mul_(end.alpha).add_(here.x0(x, v), alpha=left)
        return x.add_(f.noise(k, x), alpha=fresh)
