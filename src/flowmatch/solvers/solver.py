"""What a solver is: it integrates `dx/dt = f(x, t)` and knows nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from flowmatch.component import Component

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

    @abstractmethod
    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield `(t, x)` after each step; the last is at `t1`."""

    def integrate(self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0) -> Tensor:
        """The solution at `t1` that starts at `x` [B, *D] at `t0`."""
        *_, (_, x) = self.trajectory(f, x, t0=t0, t1=t1)
        return x

    def ends_at_data(self, t0: float, t1: float) -> bool:
        """Whether the safe end applies: a multi-stage method that runs forward into t=1."""
        return self.safe_end and t0 < t1 == 1.0


@dataclass(frozen=True, kw_only=True)
class FixedStep(Solver):
    """A one-step method on a uniform grid.

    With `safe_end`, the last step of a method of s stages into t=1 becomes s Euler steps: as many
    evaluations, the last of them at `1 - h/s`, and the end is the network's own estimate of the
    datum there. That costs the declared order in that one step only.

    Args:
        steps: number of steps, >= 1.
    """

    steps: int = 100

    order: ClassVar[int]
    stages: ClassVar[int]

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a solver needs at least 1 step, got {self.steps}")

    @property
    def nfe(self) -> int:
        """Field calls of one integration; the safe end does not change it."""
        return self.steps * self.stages

    @abstractmethod
    def step(self, f: TimeField, x: Tensor, t: float, s: float) -> Tensor:
        """One step from `t` to `s`; `s < t` is integration backward in time."""

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        times = uniform(t0, t1, self.steps)
        safe = self.stages > 1 and self.ends_at_data(t0, t1)
        for t, s in pairwise(times):
            if safe and s == t1:
                for a, b in pairwise(uniform(t, s, self.stages)):
                    x = x + (b - a) * f(x, a)
            else:
                x = self.step(f, x, t, s)
            yield s, x


def uniform(t0: float, t1: float, steps: int) -> list[float]:
    """`steps + 1` equally spaced times; both ends are exact."""
    return [t0 + (t1 - t0) * i / steps for i in range(steps)] + [t1]
