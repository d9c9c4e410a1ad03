"""Heun's third-order method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.solver import FixedStep, TimeField


@dataclass(frozen=True, kw_only=True)
class Heun3(FixedStep):
    """Heun's third-order method: 3 field calls a step, none at its end.  Source: Heun 1900."""

    kind: Literal["heun3"] = "heun3"
    order: ClassVar[int] = 3
    stages: ClassVar[int] = 3
    nodes: ClassVar[tuple[float, ...]] = (1 / 3, 2 / 3)

    def step(self, f: TimeField, x: Tensor, t: float, s: float) -> Tensor:
        h = s - t
        k1 = f(x, t)
        k2 = f(x.add(k1, alpha=1 / 3 * h), t + 1 / 3 * h)
        k3 = f(x.add(k2, alpha=2 / 3 * h), t + 2 / 3 * h)
        return x.add(k1, alpha=h / 4).add(k3, alpha=3 / 4 * h)
