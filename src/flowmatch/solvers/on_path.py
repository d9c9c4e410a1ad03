"""What exponential and stochastic solvers know beside the field: its affine path, fresh noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flowmatch.solvers.solver import TimeField

StepNoise = Callable[[int, Tensor], Tensor]
"""`noise(k, x) -> standard normal numbers` shaped like `x`: the k-th draw of an integration."""


class Schedule(Protocol):
    """An affine path `xt = alpha(t) x1 + sigma(t) x0`, as far as a solver uses it."""

    def alpha(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor) -> Tensor: ...
    def d_alpha(self, t: Tensor) -> Tensor: ...
    def d_sigma(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class OnPath:
    """A time field that is the velocity of a flow on a known affine path.

    Args:
        f: the velocity.
        path: the path of the flow.
        noise: where a stochastic solver's noise comes from.
    """

    f: TimeField
    path: Schedule
    noise: StepNoise

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.f(x, t)


def require_path(f: TimeField, solver: str) -> OnPath:
    """The field as an `OnPath`.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(f, OnPath):
        raise ValueError(
            f"{solver} needs the affine path of the flow that it samples; sample a Flow or fields"
            " around one, or pass path=..."
        )
    return f


class Point(NamedTuple):
    """A path's coefficients at one time, as plain numbers."""

    t: float
    alpha: float
    sigma: float
    d_alpha: float
    d_sigma: float

    @property
    def log_snr(self) -> float:
        """Half the logarithm of the signal-to-noise ratio: log(alpha / sigma); infinite at ends."""
        if self.alpha <= 0:
            return -math.inf
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf

    @property
    def _det(self) -> float:
        return self.alpha * self.d_sigma - self.sigma * self.d_alpha

    @property
    def stands_still(self) -> bool:
        """Whether nothing moves, so that a velocity says nothing about x0 and x1."""
        return self._det == 0

    def x1(self, x: Tensor, v: Tensor) -> Tensor:
        """The data prediction that a velocity implies: the 2x2 solve of the path."""
        return x * (self.d_sigma / self._det) - v * (self.sigma / self._det)

    def x0(self, x: Tensor, v: Tensor) -> Tensor:
        """The source prediction that a velocity implies."""
        return v * (self.alpha / self._det) - x * (self.d_alpha / self._det)

    def jump(self, x: Tensor, v: Tensor, end: Point) -> Tensor:
        """`alpha_end x1 + sigma_end x0` of the present predictions: a first-order step.

        It is exact where the predictions do not change. Where nothing moves, an Euler step.
        Source: Song et al. 2021, "DDIM", equation 12 without noise; on linear paths it is Euler's.
        """
        if self.stands_still:
            return x.add(v, alpha=end.t - self.t)
        by_x = (end.alpha * self.d_sigma - end.sigma * self.d_alpha) / self._det
        by_v = (end.sigma * self.alpha - end.alpha * self.sigma) / self._det
        return (x * by_x).add_(v, alpha=by_v)


def points(path: Schedule, times: Sequence[float]) -> list[Point]:
    """The path's coefficients at each time, in double precision."""
    t = torch.tensor(times, dtype=torch.float64)
    columns = (path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [Point(at, *row) for at, row in zip(times, rows, strict=True)]
