"""The explicit midpoint method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.solver import FixedStep, TimeField


@dataclass(frozen=True, kw_only=True)
class Midpoint(FixedStep):
    """The explicit midpoint method, second order: 2 field calls a step.  Source: Runge 1895."""

    kind: Literal["midpoint"] = "midpoint"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2
    nodes: ClassVar[tuple[float, ...]] = (1 / 2,)

    def step(self, f: TimeField, x: Tensor, t: float, s: float) -> Tensor:
        h = s - t
        half = x.add(f(x, t), alpha=h / 2)
        return x.add(f(half, t + h / 2), alpha=h)
