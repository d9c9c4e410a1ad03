"""DPM-Solver++: multistep methods for the data prediction, in half the log SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from flowmatch.solvers.exponential import Exponential
from flowmatch.solvers.interpolation import lagrange_integrals
from flowmatch.solvers.on_path import Point, Schedule


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Exponential):
    """DPM-Solver++(2M): the data prediction extrapolated to the middle of the step in log SNR.

        x_s = sigma_s/sigma_t x_t + alpha_s (1 - e^-h) ((1 + 1/2r) D_t - 1/2r D_prev)

    with h the step and r the ratio of the previous step to it, in half the log SNR.
    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    order: ClassVar[int] = 2
    memory: ClassVar[int] = 2

    def weights(
        self, path: Schedule, seen: Sequence[Point], end: Point
    ) -> tuple[float, Sequence[float]]:
        here, before = seen
        h = end.log_snr - here.log_snr
        half = h / (here.log_snr - before.log_snr) / 2
        total = -end.alpha * math.expm1(-h)
        return end.sigma / here.sigma, (total * (1 + half), -total * half)


@dataclass(frozen=True, kw_only=True)
class DPMpp3M(Exponential):
    """DPM-Solver++(3M): the parabola through three data predictions, integrated exactly.

        x_s = sigma_s/sigma_t x_t + alpha_s integral from -h to 0 of e^u D(lambda_s + u) du

    The published code (and diffusers after it) gives the quadratic term half its weight, which
    makes that method one of second order; here it has its full weight and third order.
    Source: Lu et al. 2022, "DPM-Solver++", equation 8 with an interpolation of degree 2.
    """

    kind: Literal["dpmpp_3m"] = "dpmpp_3m"
    order: ClassVar[int] = 3
    memory: ClassVar[int] = 3

    def weights(
        self, path: Schedule, seen: Sequence[Point], end: Point
    ) -> tuple[float, Sequence[float]]:
        here, until = seen[0], end.log_snr

        def growth(at: Sequence[float]) -> list[float]:
            return [end.alpha * math.exp(u - until) for u in at]

        nodes = [point.log_snr for point in seen]
        return end.sigma / here.sigma, lagrange_integrals(nodes, here.log_snr, until, growth)
