"""Euler's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.solver import FixedStep, TimeField


@dataclass(frozen=True, kw_only=True)
class Euler(FixedStep):
    """Euler's first-order method: 1 field call a step.  Source: Euler 1768."""

    kind: Literal["euler"] = "euler"
    order: ClassVar[int] = 1
    stages: ClassVar[int] = 1

    def step(self, f: TimeField, x: Tensor, t: float, s: float) -> Tensor:
        return x.add(f(x, t), alpha=s - t)
