"""The classical Runge-Kutta method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.solver import FixedStep, TimeField


@dataclass(frozen=True, kw_only=True)
class RK4(FixedStep):
    """The classical fourth-order method: 4 field calls a step.  Source: Kutta 1901."""

    kind: Literal["rk4"] = "rk4"
    order: ClassVar[int] = 4
    stages: ClassVar[int] = 4
    nodes: ClassVar[tuple[float, ...]] = (1 / 2,)

    def step(self, f: TimeField, x: Tensor, t: float, s: float) -> Tensor:
        h = s - t
        k1 = f(x, t)
        k2 = f(x.add(k1, alpha=h / 2), t + h / 2)
        k3 = f(x.add(k2, alpha=h / 2), t + h / 2)
        k4 = f(x.add(k3, alpha=h), s)
        return x.add(k1 + k4, alpha=h / 6).add(k2 + k3, alpha=h / 3)
