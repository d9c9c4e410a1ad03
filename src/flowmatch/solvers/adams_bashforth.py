"""Adams-Bashforth methods: one field call a step, the rest from memory."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.interpolation import lagrange_integrals
from flowmatch.solvers.midpoint import Midpoint
from flowmatch.solvers.solver import GridSolver, TimeField


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth(GridSolver, ABC):
    """Integrates the polynomial through the last velocities, on any grid: 1 field call a step.

    The field is never asked at t=1. With `safe_end` the last step into t=1 is Euler's, which ends
    on the network's own estimate of the datum; an extrapolated velocity misses it.
    Source: Bashforth & Adams 1883; variable steps: Hairer, Norsett & Wanner 1993, section III.5.
    """

    stages: ClassVar[int] = 1

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        seen: list[tuple[float, Tensor]] = []  # newest first
        safe = self.ends_at_data(t0, t1)
        for t, s in pairwise(self.times(t0, t1)):
            v = f(x, t)
            seen = [(t, v), *seen[: self.order - 1]]
            if safe and s == t1:
                x = x.add(v, alpha=s - t)
            elif len(seen) == 1 and self.extra and self.steps > 1:  # an Euler step costs an order
                half = (s - t) / 2
                x = x.add(f(x.add(v, alpha=half), t + half), alpha=s - t)
            else:
                weights = lagrange_integrals([at for at, _ in seen], t, s)
                for weight, (_, velocity) in zip(weights, seen, strict=True):
                    x = x.add(velocity, alpha=weight)
            yield s, x


@dataclass(frozen=True, kw_only=True)
class AB2(AdamsBashforth):
    """The two-step Adams-Bashforth method; its first step is Euler's."""

    kind: Literal["ab2"] = "ab2"
    order: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class AB3(AdamsBashforth):
    """The three-step Adams-Bashforth method; its first step is a midpoint step of 2 calls."""

    kind: Literal["ab3"] = "ab3"
    order: ClassVar[int] = 3
    extra: ClassVar[int] = Midpoint.stages - 1

    @property
    def nfe(self) -> int:
        return super().nfe if self.steps > 1 else 1  # a single step is Euler's
