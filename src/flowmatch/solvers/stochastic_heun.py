"""Heun's method for the SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.on_path import OnPath, Point
from flowmatch.solvers.stochastic import Diffusing


@dataclass(frozen=True, kw_only=True)
class StochasticHeun(Diffusing):
    """Heun's method for the SDE: 2 field calls a step, weak order 2 as the noise is additive.

    Source: Kloeden & Platen 1992, "Numerical Solution of SDEs", section 15.1 (trapezoidal).
    """

    kind: Literal["stochastic_heun"] = "stochastic_heun"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def noisy_step(self, f: OnPath, x: Tensor, here: Point, end: Point, k: int) -> Tensor:
        h = end.t - here.t
        before, after = self.noise_rate(here, end, h), self.noise_rate(end, end, h)
        rate = (before + after) / 2  # its integral, to second order
        kick = f.noise(k, x) * math.sqrt(rate * h) if rate else 0.0
        first = self.drift(f, x, here, before)
        second = self.drift(f, x.add(first, alpha=h) + kick, end, after)
        return x.add(first + second, alpha=h / 2) + kick
