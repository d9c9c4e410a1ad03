"""EDM's stochastic sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowmatch.solvers.heun import Heun
from flowmatch.solvers.on_path import OnPath, Point, Schedule, points
from flowmatch.solvers.stochastic import Stochastic


@dataclass(frozen=True, kw_only=True)
class Churn(Stochastic):
    """EDM's churn: add noise to go back a little in time, then take a Heun step of the ODE.

    The noise-to-signal ratio s = sigma/alpha is raised by `1 + min(churn / steps, sqrt(2) - 1)`
    where it lies in `[ratio_min, ratio_max]`; 2 field calls a step.

    Args:
        churn: total amount of noise, >= 0; 0 is Heun.
        ratio_min, ratio_max: where noise is added, 0 <= ratio_min <= ratio_max.
        noise: standard deviation of the added noise, > 0; slightly above 1 makes up for detail that
            a network loses.
    Source: Karras et al. 2022, "Elucidating the Design Space", algorithm 2.
    """

    churn: float = 10.0
    ratio_min: float = 0.05
    ratio_max: float = 50.0
    noise: float = 1.0
    kind: Literal["edm_churn"] = "edm_churn"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.churn < 0 or self.noise <= 0 or not 0 <= self.ratio_min <= self.ratio_max:
            raise ValueError(
                "edm_churn needs churn >= 0, noise > 0 and 0 <= ratio_min <= ratio_max, got"
                f" {self.churn}, {self.noise}, {self.ratio_min} and {self.ratio_max}"
            )

    def noisy_step(self, f: OnPath, x: Tensor, here: Point, end: Point, k: int) -> Tensor:
        raised = min(self.churn / self.steps, math.sqrt(2) - 1)
        if raised and here.alpha > 0 and self.ratio_min <= _ratio(here) <= self.ratio_max:
            start = _where(
                f.path,  # type: ignore[arg-type]
                _ratio(here) * (1 + raised),
                here.t,
            )
            kept = start.alpha / here.alpha
            added = math.sqrt(max(0.0, start.sigma**2 - (kept * here.sigma) ** 2))
            x = (x * kept).add_(f.noise(k, x), alpha=added * self.noise)
            here = start
        return Heun(steps=1).step(f, x, here.t, end.t)


def _ratio(at: Point) -> float:
    return at.sigma / at.alpha


@lru_cache(maxsize=4096)  # the same for every batch of a job
def _where(path: Schedule, ratio: float, before: float) -> Point:
    """The point before a time at which sigma/alpha has a value; it falls along every path."""
    low, high = 0.0, before
    for _ in range(60):
        middle = (low + high) / 2
        t = torch.tensor(middle, dtype=torch.float64)
        if float(path.sigma(t)) > ratio * float(path.alpha(t)):
            low = middle
        else:
            high = middle
    return points(path, [high])[0]
