"""Heun's method, the explicit trapezoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.solver import FixedStep, TimeField


@dataclass(frozen=True, kw_only=True)
class Heun(FixedStep):
    """Heun's second-order method (the explicit trapezoid): 2 field calls a step.

    Its second stage is at the end of the step, which is why the last step into t=1 needs the safe
    end (compare Karras et al. 2022, "Elucidating the Design Space", algorithm 1, line 6).
    Source: Heun 1900.
    """

    kind: Literal["heun"] = "heun"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def step(self, f: TimeField, x: Tensor, t: float, s: float) -> Tensor:
        h = s - t
        k1 = f(x, t)
        k2 = f(x.add(k1, alpha=h), s)
        return x.add(k1 + k2, alpha=h / 2)
