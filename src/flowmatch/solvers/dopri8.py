"""The adaptive method of Dormand and Prince of order 8."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from flowmatch.solvers.adaptive import Adaptive, Step
from flowmatch.solvers.solver import TimeField
from flowmatch.solvers.tableau import Numbers, Sum, Tableau, column, like, times_for


@dataclass(frozen=True, kw_only=True)
class Dopri8(Adaptive):
    """Dormand-Prince 8(5,3), known as DOP853: 12 field calls a step, for tight tolerances.

    The coefficients are those of `scipy.integrate.DOP853`.
    Source: Hairer, Norsett & Wanner 1993, "Solving ODEs I", sections II.5 and II.10; the dense
    output is of order 7 and costs 3 field calls in each step that it looks into.
    """

    kind: Literal["dopri8"] = "dopri8"  # type: ignore[misc]
    order: ClassVar[int] = 8

    def tableau(self) -> Tableau:
        return _tableau()

    def norm(self, errors: list[Numbers]) -> Numbers:
        fifth, third = errors
        both = np.sqrt(fifth**2 + 0.01 * third**2)
        return fifth**2 / np.where(both > 0, both, 1)

    def interpolate(self, f: TimeField, step: Step, theta: Numbers) -> Tensor:
        from scipy.integrate import DOP853

        h = like(step.h, step.x, step.x.dtype)
        k = list(step.k)
        for node, row in zip(DOP853.C_EXTRA.tolist(), DOP853.A_EXTRA.tolist(), strict=True):
            x = Sum.of(row[: len(k)]).times(h, step.x, k)
            k.append(f(x, times_for(x, step.t + node * step.h)))
        change, first, last = step.x_new - step.x, h * step.k[0], h * step.k[-1]
        terms = [change, first - change, 2 * change - last - first]
        zero = torch.zeros_like(change)
        terms += [Sum.of(row).times(h, zero, k) for row in DOP853.D.tolist()]
        up = like(theta, step.x, step.x.dtype)
        x = zero
        for i, term in enumerate(reversed(terms)):
            x = (x + term) * (up if i % 2 == 0 else 1 - up)
        return step.x + x


@cache
def _tableau() -> Tableau:
    from scipy.integrate import DOP853

    rows = [row[:i] for i, row in enumerate(DOP853.A.tolist()) if i > 0]
    return Tableau(
        nodes=column((*DOP853.C.tolist()[1:], 1.0)),
        stages=tuple(map(Sum.of, (*rows, DOP853.B.tolist()))),
        errors=(Sum.of(DOP853.E5.tolist()), Sum.of(DOP853.E3.tolist())),
    )
