"""UniPC: a predictor and a corrector that cost one field call a step together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.exponential import Exponential, combine, from_the_beginning
from flowmatch.solvers.on_path import Point, Schedule, points, require_path
from flowmatch.solvers.solver import TimeField


@dataclass(frozen=True, kw_only=True)
class UniPC(Exponential):
    """UniPC-2 in its B2(h) form: second-order predictor, corrector of one order more.

    The velocity at the end of a step, which the next step needs anyway, also corrects that step:
    third order for 1 field call a step. The corrected state is not evaluated again.
    Source: Zhao et al. 2023, "UniPC", algorithms 5 to 8, with B(h) = e^h - 1.
    """

    kind: Literal["unipc"] = "unipc"
    order: ClassVar[int] = 3
    memory: ClassVar[int] = 2

    def weights(
        self, path: Schedule, seen: Sequence[Point], end: Point
    ) -> tuple[float, Sequence[float]]:
        return _unified(seen, end, corrected=False)

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        f = require_path(f, self.kind)
        seen: list[tuple[Point, Tensor]] = []  # newest first
        start = x  # the state at the beginning of the last step
        for here, end in pairwise(points(f.path, self.times(t0, t1))):
            v = f(x, here.t)
            now = self.remember(seen, here, x, v)
            if seen and now[0][0] is here:
                nodes = [p for p, _ in seen]
                if nodes[-1].alpha > 0:
                    c, weights = _unified(nodes, here, corrected=True)
                else:
                    c, weights = from_the_beginning([*nodes, here], nodes[0], here)
                new = now[0][1]
                x = combine(c, start, weights, [*(d for _, d in seen), new])
            start, seen = x, now
            x = self.advance(f.path, seen, here, end, x, v)
            yield end.t, x


def _unified(
    seen: Sequence[Point], end: Point, *, corrected: bool
) -> tuple[float, Sequence[float]]:
    """`c` and the weight of each prediction, newest first; `corrected`: then of that at `end` too.

    Source: Zhao et al. 2023, equations 3 and 9, for the data prediction as in appendix F.
    """
    here = seen[0]
    h = end.log_snr - here.log_snr
    ratios = [(point.log_snr - here.log_snr) / h for point in seen[1:]] + [1.0] * corrected
    order = len(ratios)
    total = -end.alpha * math.expm1(-h)
    if order == 1 and (corrected or len(seen) == 2):
        rho = [0.5]
    else:
        rho = _vandermonde(ratios, _moments(h, order))
    differences = [total * p / r for p, r in zip(rho, ratios, strict=True)]
    return end.sigma / here.sigma, [total - sum(differences), *differences]


def _vandermonde(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """`rho` with `sum_j rho_j nodes_j^k = moments_k`, one or two of them."""
    if len(nodes) == 1:
        return [moments[0]]
    (p, q), (first, second) = nodes, moments
    return [(q * first - second) / (q - p), (second - p * first) / (q - p)]


def _moments(h: float, count: int) -> list[float]:
    """`k! phi_(k+1)(-h) h / (1 - e^-h)` for k = 1, ...: what the corrector must match."""
    phi, factorial, out = math.expm1(-h) / -h - 1, 1.0, []
    for k in range(1, count + 1):
        out.append(phi * factorial / math.expm1(-h))
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    return out
