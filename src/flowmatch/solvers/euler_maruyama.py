"""The method of Euler and Maruyama."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.on_path import OnPath, Point
from flowmatch.solvers.stochastic import Diffusing


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(Diffusing):
    """Euler's method for the SDE: 1 field call a step, weak order 1.  Source: Maruyama 1955."""

    kind: Literal["euler_maruyama"] = "euler_maruyama"
    order: ClassVar[int] = 1
    stages: ClassVar[int] = 1

    def noisy_step(self, f: OnPath, x: Tensor, here: Point, end: Point, k: int) -> Tensor:
        h = end.t - here.t
        rate = self.noise_rate(here, end, h)
        x = x.add(self.drift(f, x, here, rate), alpha=h)
        return x.add(f.noise(k, x), alpha=math.sqrt(rate * h)) if rate else x
