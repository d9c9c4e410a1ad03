"""The adaptive method of Bogacki and Shampine of order 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.adaptive import Adaptive, Step
from flowmatch.solvers.solver import TimeField
from flowmatch.solvers.tableau import Numbers, Sum, Tableau, column, like, polynomial

_TABLEAU = Tableau(
    nodes=column((1 / 2, 3 / 4, 1.0)),
    stages=tuple(Sum.of(row) for row in ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9))),
    errors=(Sum.of((2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8)),),
)
# cubic Hermite interpolation, written in the stages
_DENSE = ((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Bosh3(Adaptive):
    """Bogacki-Shampine 3(2): 3 field calls a step, for loose tolerances.

    Source: Bogacki & Shampine 1989; dense output of order 3 by cubic Hermite interpolation.
    """

    kind: Literal["bosh3"] = "bosh3"  # type: ignore[misc]
    order: ClassVar[int] = 3

    def tableau(self) -> Tableau:
        return _TABLEAU

    def interpolate(self, f: TimeField, step: Step, theta: Numbers) -> Tensor:
        h = like(step.h, step.x, step.x.dtype)
        return step.x + h * polynomial(_DENSE, step.k, theta)
