"""What a solver is: it integrates `dx/dt = f(x, t)` and knows nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from torch import Tensor

from flowmatch.component import Component
from flowmatch.solvers.grids import Grid, GridConfig, UniformGrid

TimeField = Callable[[Tensor, float | Tensor], Tensor]
"""`f(x [B, *D], t) -> dx/dt [B, *D]`; `t` is a number, or [B] where each sample has its own."""


class Stalled(RuntimeError):
    """An adaptive solver cannot go on; the message says where it stood and what to change."""


@dataclass(frozen=True, kw_only=True)
class Solver(Component, ABC):
    """An integrator of `dx/dt = f(x, t)` from `t0` to `t1`, forward or backward.

    Args:
        safe_end: keep multi-stage methods from evaluating f at t=1, where the velocity of a flow
            is singular: a network's answer there has forgotten the noise, and a stage that uses
            it leaves about half a step of noise in the image. False gives the bare method.
    """

    safe_end: bool = True

    needs_path: ClassVar[bool] = False
    """Whether it uses the affine path of the flow (then f must be an `OnPath`)."""
    stochastic: ClassVar[bool] = False
    """Whether it adds fresh noise on the way."""

    @abstractmethod
    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield `(t, x)` after each step; the last is at `t1`."""

    def integrate(self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0) -> Tensor:
        """The solution at `t1` that starts at `x` [B, *D] at `t0`."""
        for _, state in self.trajectory(f, x, t0=t0, t1=t1):
            x = state  # a list of them all would keep each in memory
        return x

    def ends_at_data(self, t0: float, t1: float) -> bool:
        """Whether the safe end applies: a method that runs forward into t=1."""
        return self.safe_end and t0 < t1 == 1.0


@dataclass(frozen=True, kw_only=True)
class GridSolver(Solver, ABC):
    """A method that walks along a time grid.

    Args:
        steps: number of steps, >= 1.
        grid: where they end.
    """

    steps: int = 100
    grid: GridConfig = UniformGrid()

    order: ClassVar[int]
    stages: ClassVar[int]
    """Field calls of a step."""
    nodes: ClassVar[tuple[float, ...]] = ()
    """Where within a step the field is asked, as shares of it, besides at its ends."""
    extra: ClassVar[int] = 0
    """Field calls of one integration beyond those of its steps."""

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int | np.integer) or self.steps < 1:
            raise ValueError(f"a solver needs at least 1 step, a whole number, got {self.steps!r}")
        if not isinstance(self.grid, Grid):
            raise TypeError(
                f"the grid of a solver must be a Grid, got {self.grid!r}; for times of your own"
                " write ExplicitGrid(values=(0.0, ..., 1.0))"
            )
        self.grid.times(self.steps)  # refuses a grid of another length

    @property
    def nfe(self) -> int:
        """Field calls of one integration; the safe end does not change it."""
        return self.steps * self.stages + self.extra

    def times(self, t0: float = 0.0, t1: float = 1.0) -> list[float]:
        """The `steps + 1` times from `t0` to `t1`, both ends exact; one where they are the same."""
        return self.grid.between(t0, t1, self.steps) if t0 != t1 else [t0]

    def asked(self, t0: float = 0.0, t1: float = 1.0) -> list[float]:
        """The times that the field will be asked at, so that they can be made ready together."""
        times = self.times(t0, t1)
        return [*times, *(t + c * (s - t) for t, s in pairwise(times) for c in self.nodes)]


@dataclass(frozen=True, kw_only=True)
class FixedStep(GridSolver, ABC):
    """A one-step method on a time grid.

    With `safe_end`, the last step of a method of s stages into t=1 becomes s Euler steps: as many
    evaluations, the last of them at `1 - h/s`, and the end is the network's own estimate of the
    datum there. That costs the declared order in that one step only.
    """

    @abstractmethod
    def step(self, f: TimeField, x: Tensor, t: float, s: float) -> Tensor:
        """One step from `t` to `s`; `s < t` is integration backward in time."""

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        safe = self.stages > 1 and self.ends_at_data(t0, t1)
        for t, s in pairwise(self.times(t0, t1)):
            if safe and s == t1:
                x = euler_substeps(f, x, t, s, self.stages)
            else:
                x = self.step(f, x, t, s)
            yield s, x


def euler_substeps(f: TimeField, x: Tensor, t: float, s: float, count: int) -> Tensor:
    """`count` equal Euler steps from `t` to `s`: how a multi-stage method ends at the data."""
    for a, b in pairwise(UniformGrid().between(t, s, count)):
        x = x.add(f(x, a), alpha=b - a)
    return x
