"""Exponential multistep methods on an affine path: what they have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.interpolation import lagrange_integrals
from flowmatch.solvers.on_path import Point, Schedule, points, require_path
from flowmatch.solvers.solver import GridSolver, TimeField

_REACH = 5.0
"""How many times its alpha/sigma a second step may reach by the line from t=0 through its start; a
line drawn further misses by more than it gains (after the tiny first step of an EDM grid, by far).
"""


@dataclass(frozen=True, kw_only=True)
class Exponential(GridSolver, ABC):
    """Solves the linear part of a flow exactly and extrapolates the prediction alone.

    With the data prediction D = E[x1 | xt] or the source prediction E = E[x0 | xt],

        d(x / sigma) = D d(alpha / sigma),      d(x / alpha) = E d(sigma / alpha)

    hold on any affine path, so a step from a to b is `x_b = c x_a + sum_j w_j P_j` with the last
    few predictions P_j. 1 field call a step, never at t=1. The first step, a step into t=1 (of
    infinite length in log SNR) and one from where the path stands still are of first order. So is
    the error that the first step leaves: a method of third order shows its order where the first
    step is short.
    Source: Lu et al. 2022, "DPM-Solver++", equation 8; Zhang & Chen 2023, "DEIS", equation 8.
    """

    needs_path: ClassVar[bool] = True
    stages: ClassVar[int] = 1
    predicts: ClassVar[Literal["x1", "x0"]] = "x1"
    memory: ClassVar[int]
    """How many predictions a step uses at most."""

    @abstractmethod
    def weights(
        self, path: Schedule, seen: Sequence[Point], end: Point
    ) -> tuple[float, Sequence[float]]:
        """`(c, [w_j])` of a step from `seen[0]` to `end`; `seen` are two points or more, newest
        first, at which the path moves and both alpha and sigma are positive.
        """

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        f = require_path(f, self.kind)  # type: ignore[attr-defined]
        seen: list[tuple[Point, Tensor]] = []  # newest first
        for here, end in pairwise(points(f.path, self.times(t0, t1))):
            v = f(x, here.t)
            seen = self.remember(seen, here, x, v)
            x = self.advance(f.path, seen, here, end, x, v)
            yield end.t, x

    def remember(
        self, seen: list[tuple[Point, Tensor]], here: Point, x: Tensor, v: Tensor
    ) -> list[tuple[Point, Tensor]]:
        """The predictions so far with the one at `here`, if its place allows to use it later."""
        if here.stands_still or here.sigma <= 0:
            return seen
        prediction = here.x1(x, v) if self.predicts == "x1" else here.x0(x, v)
        return [(here, prediction), *seen[: self.memory - 1]]

    def advance(
        self,
        path: Schedule,
        seen: list[tuple[Point, Tensor]],
        here: Point,
        end: Point,
        x: Tensor,
        v: Tensor,
    ) -> Tensor:
        """The state at `end`."""
        nodes = [point for point, _ in seen]
        if not seen or nodes[0] is not here or (self.predicts == "x0" and here.alpha <= 0):
            return here.jump(x, v, end)
        if len(seen) < 2 or end.sigma <= 0 or end.alpha <= 0:
            c, weights = self._first_order(here, end)
        elif self.predicts == "x0" or nodes[-1].alpha > 0:
            c, weights = self.weights(path, nodes, end)
        elif len(seen) > 2:
            c, weights = self.weights(path, nodes[:2], end)
        elif end.alpha / end.sigma <= _REACH * here.alpha / here.sigma:
            c, weights = from_the_beginning(nodes, here, end)
        else:
            c, weights = self._first_order(here, end)
        return combine(c, x, weights, [prediction for _, prediction in seen][: len(weights)])

    def _first_order(self, here: Point, end: Point) -> tuple[float, Sequence[float]]:
        """The weights of a step that takes the last prediction for constant."""
        if self.predicts == "x1":
            c = end.sigma / here.sigma
            return c, (end.alpha - c * here.alpha,)
        c = end.alpha / here.alpha
        return c, (end.sigma - c * here.sigma,)


def from_the_beginning(
    seen: Sequence[Point], here: Point, end: Point
) -> tuple[float, Sequence[float]]:
    """The weights of a step from `here` to `end` by the polynomial in alpha/sigma through `seen`.

    At t=0 the log SNR is infinite, but x / sigma is the integral of D over alpha / sigma, and that
    is 0 there: so the very first prediction can be used as well.
    """
    ratios = [point.alpha / point.sigma for point in (*seen, here, end)]
    weights = lagrange_integrals(ratios[:-2], ratios[-2], ratios[-1])
    return end.sigma / here.sigma, [end.sigma * weight for weight in weights]


def combine(c: float, x: Tensor, weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """`c x + sum_j w_j terms_j`."""
    out = x * c
    for weight, term in zip(weights, terms, strict=True):
        out = out.add(term, alpha=weight)
    return out
