"""DEIS: a multistep method for the source prediction, in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from flowmatch.solvers.exponential import Exponential
from flowmatch.solvers.interpolation import lagrange_integrals
from flowmatch.solvers.on_path import Point, Schedule, points


@dataclass(frozen=True, kw_only=True)
class DEIS(Exponential):
    """tAB-DEIS: the parabola in t through three source predictions, integrated exactly.

        x_s = alpha_s/alpha_t x_t + alpha_s integral from t to s of (sigma/alpha)'(u) E(u) du

    Source: Zhang & Chen 2023, "Fast Sampling with Exponential Integrator", equation 15 (tAB2).
    """

    kind: Literal["deis"] = "deis"
    order: ClassVar[int] = 3
    memory: ClassVar[int] = 3
    predicts: ClassVar[Literal["x1", "x0"]] = "x0"

    def weights(
        self, path: Schedule, seen: Sequence[Point], end: Point
    ) -> tuple[float, Sequence[float]]:
        here = seen[0]

        def rate(at: Sequence[float]) -> list[float]:
            return [
                end.alpha * (p.d_sigma * p.alpha - p.sigma * p.d_alpha) / p.alpha**2
                for p in points(path, at)
            ]

        nodes = [point.t for point in seen]
        # (sigma/alpha)' is like 1/t^2 near the noise
        wide = min(here.t, end.t) > 0
        weights = lagrange_integrals(nodes, here.t, end.t, rate, logarithmic=wide)
        return end.alpha / here.alpha, weights
