"""The adaptive method of Dormand and Prince of order 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.adaptive import Adaptive, Step
from flowmatch.solvers.solver import TimeField
from flowmatch.solvers.tableau import Numbers, Sum, Tableau, column, like, polynomial

_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
_TABLEAU = Tableau(
    nodes=column((1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)),
    stages=tuple(map(Sum.of, _STAGES)),
    errors=(Sum.of([b - c for b, c in zip((*_STAGES[-1], 0.0), _FOURTH, strict=True)]),),
)


@dataclass(frozen=True, kw_only=True)
class Dopri5(Adaptive):
    """Dormand-Prince 5(4): 6 field calls a step.

    Source: Dormand & Prince 1980, table 2; dense output of order 4: Hairer, Norsett & Wanner 1993,
    section II.6, with the coefficients of Shampine 1986 that SciPy uses.
    """

    kind: Literal["dopri5"] = "dopri5"  # type: ignore[misc]
    order: ClassVar[int] = 5

    def tableau(self) -> Tableau:
        return _TABLEAU

    def interpolate(self, f: TimeField, step: Step, theta: Numbers) -> Tensor:
        from scipy.integrate import RK45

        h = like(step.h, step.x, step.x.dtype)
        return step.x + h * polynomial(RK45.P.tolist(), step.k, theta)
