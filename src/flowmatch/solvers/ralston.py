"""Ralston's second-order method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.solver import FixedStep, TimeField


@dataclass(frozen=True, kw_only=True)
class Ralston(FixedStep):
    """The second-order method of least error bound: 2 field calls a step.  Source: Ralston 1962."""

    kind: Literal["ralston"] = "ralston"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2
    nodes: ClassVar[tuple[float, ...]] = (2 / 3,)

    def step(self, f: TimeField, x: Tensor, t: float, s: float) -> Tensor:
        h = s - t
        k1 = f(x, t)
        k2 = f(x.add(k1, alpha=2 / 3 * h), t + 2 / 3 * h)
        return x.add(k1, alpha=h / 4).add(k2, alpha=3 / 4 * h)
