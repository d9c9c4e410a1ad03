"""Embedded Runge-Kutta methods with a step size of its own for each sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flowmatch.solvers.solver import Solver, Stalled, TimeField
from flowmatch.tensors import batch_time, expand_like, mean_flat


class Tableau(NamedTuple):
    """An explicit method whose last stage is the first of the next step."""

    nodes: Sequence[float]
    """Of the stages after the first; the last is 1."""
    stages: Sequence[Sequence[float]]
    """Row i gives stage i + 1 from those before; the last row gives the new state."""


class Step(NamedTuple):
    """What one tried step of size `h` [B] from `t` [B] found; Euler's has one stage."""

    t: Tensor
    h: Tensor
    x: Tensor
    x_new: Tensor
    k: list[Tensor]
    accepted: Tensor


Moved = tuple[float, Tensor, Step]
"""Time of the slowest sample, the states, and the step that was tried."""


@dataclass(frozen=True, kw_only=True)
class Adaptive(Solver, ABC):
    """A Runge-Kutta pair with a PI step-size controller, run for each sample on its own clock.

    Each sample of the batch has its own time and step size, so a sample's result does not depend
    on which others it was computed with. The batch runs until its slowest sample is done. With
    `safe_end` the method stops at `1 - 1e-3`, and one Euler step leads from there to the datum.

    Args:
        rtol, atol: tolerances of the local error, both > 0: a step is accepted when the root mean
            square of `error / (atol + rtol * max(|x|, |x_new|))` is at most 1.
        max_steps: give up after so many tried steps.
    Source: Hairer, Norsett & Wanner 1993, "Solving ODEs I", section II.4, and Hairer & Wanner 1996,
    section IV.2 (PI controller).
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    kind: ClassVar[str]
    order: ClassVar[int]

    def __post_init__(self) -> None:
        if self.rtol <= 0 or self.atol <= 0:
            raise ValueError(
                f"{self.kind} needs rtol > 0 and atol > 0, got {self.rtol} and {self.atol}"
            )
        if self.max_steps < 1:
            raise ValueError(f"{self.kind} needs max_steps >= 1, got {self.max_steps}")

    @abstractmethod
    def tableau(self) -> Tableau:
        """The method's coefficients."""

    @abstractmethod
    def error(self, k: list[Tensor], step: Tensor, scale: Tensor) -> Tensor:
        """The local error over its tolerance, [B]: stages `k`, step sizes and `scale` [B, *D]."""

    @abstractmethod
    def interpolate(self, f: TimeField, step: Step, theta: Tensor) -> Tensor:
        """The state at `t + theta h` within a step, theta [B] in [0, 1]: dense output."""

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield `(t of the slowest sample, x)` after each tried step.

        Raises:
            Stalled: the step size fell to the resolution of the time, or `max_steps` passed.
        """
        for t, x, _ in self._moves(f, x, t0, t1):  # noqa: B020 (x is carried on)
            yield t, x

    def at(
        self, f: TimeField, x: Tensor, times: Sequence[float], *, t0: float = 0.0, t1: float = 1.0
    ) -> Tensor:
        """The states at given times between `t0` and `t1`, by dense output: [len(times), B, *D].

        Raises:
            Stalled: as in `trajectory`.
            ValueError: a time lies outside `t0` to `t1`.
        """
        if any(not min(t0, t1) <= t <= max(t0, t1) for t in times):
            raise ValueError(f"dense output is wanted between t={t0:g} and t={t1:g}, got {times}")
        out = x.expand(len(times), *x.shape).clone()
        for _, _, step in self._moves(f, x, t0, t1):
            for row, t in enumerate(times):
                theta = (t - step.t) / torch.where(step.h == 0, 1, step.h)
                inside = step.accepted & (theta > 0) & (theta <= 1) & (step.h != 0)
                if bool(inside.any()):
                    state = self._within(f, step, theta.clamp(0, 1))
                    out[row] = torch.where(expand_like(inside, x), state, out[row])
        return out

    def _within(self, f: TimeField, step: Step, theta: Tensor) -> Tensor:
        if len(step.k) > 1:
            return self.interpolate(f, step, theta)
        return step.x + expand_like(theta * step.h, step.x).to(step.x.dtype) * step.k[0]

    def _stop(self, t0: float, t1: float) -> float:
        """Where the adaptive steps end."""
        return max(t0, 1 - 1e-3) if self.ends_at_data(t0, t1) else t1

    def _moves(self, f: TimeField, x: Tensor, t0: float, t1: float) -> Iterator[Moved]:
        stop = self._stop(t0, t1)
        for t, x, step in self._adaptive(f, x, t0, stop):  # noqa: B020
            yield t, x, step
        if stop != t1:
            start, h = batch_time(stop, x), batch_time(t1 - stop, x)
            v = f(x, stop)
            end = x.add(v, alpha=t1 - stop)
            yield t1, end, Step(start, h, x, end, [v], torch.ones_like(start, dtype=torch.bool))

    def _adaptive(self, f: TimeField, x: Tensor, t0: float, t1: float) -> Iterator[Moved]:
        t = batch_time(t0, x).clone()
        resolution = 10 * torch.finfo(t.dtype).eps
        tableau = self.tableau()
        k1 = f(x, t)
        h = self._first_step(f, x, t, k1, t1 - t0)
        last_error = torch.ones_like(h)
        for _ in range(self.max_steps):
            left = t1 - t
            if not bool(left.any()):
                return
            final = h.abs() >= left.abs()
            h = torch.where(final, left, h)
            x_new, k = self._try(tableau, f, x, t, h, k1)
            error = self._scaled_error(k, h, x, x_new)
            accept = error <= 1
            tried = Step(t, h, x, x_new, k, accept)
            t = torch.where(accept, torch.where(final, t1, t + h), t)
            keep = expand_like(accept, x)
            x, k1 = torch.where(keep, x_new, x), torch.where(keep, k[-1], k1)
            slowest = t.min() if t1 > t0 else t.max()
            yield float(slowest), x, tried
            # a NaN error (f overflowed) counts as a very large one
            error = error.nan_to_num(1e10, posinf=1e10).clamp(1e-10, 1e10)
            damping = torch.where(accept, last_error ** (0.4 / self.order), 1.0)
            growth = 0.9 * error ** (-0.7 / self.order) * damping
            h = h * torch.where(accept, growth, growth.clamp(max=0.9)).clamp(0.2, 10.0)
            last_error = torch.where(accept, error, last_error)
            stuck = (h.abs() < resolution) & (t != t1)
            if bool(stuck.any()):
                self._give_up("its step fell below the resolution of time", t, error, stuck)
        if bool((t != t1).any()):
            self._give_up(f"{self.max_steps} steps were not enough", t, error, t != t1)

    @torch.no_grad()  # gradients flow through the steps, not through the choice of their sizes
    def _scaled_error(self, k: list[Tensor], h: Tensor, x: Tensor, x_new: Tensor) -> Tensor:
        scale = self.atol + self.rtol * torch.maximum(x.abs(), x_new.abs())
        return self.error(k, expand_like(h, x).to(x.dtype), scale)

    def _try(
        self, tableau: Tableau, f: TimeField, x: Tensor, t: Tensor, h: Tensor, k1: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """One step of size `h` [B]: the new x, and all stages, the last of them there."""
        step = expand_like(h, x).to(x.dtype)
        k = [k1]
        for node, row in zip(tableau.nodes, tableau.stages, strict=True):
            x_new = x + step * weighted(row, k)
            k.append(f(x_new, t + node * h))
        return x_new, k

    @torch.no_grad()
    def _first_step(self, f: TimeField, x: Tensor, t: Tensor, k1: Tensor, span: float) -> Tensor:
        """Hairer's guess of a first step from the sizes of x, x' and x'': [B], signed."""
        scale = self.atol + self.rtol * x.abs()
        d0 = rms(x / scale)
        d1 = rms(k1 / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp(max=abs(span))
        h0 = h0.to(t.dtype).copysign(torch.full_like(t, span))
        k2 = f(x + expand_like(h0, x) * k1, t + h0)
        d2 = rms((k2 - k1) / scale) / h0.abs()
        steepest = torch.maximum(d1, d2)
        small = h0.abs() * 1e-3
        h1 = torch.where(steepest <= 1e-15, small, (0.01 / steepest) ** (1 / self.order))
        return torch.minimum(100 * h0.abs(), h1).clamp(max=abs(span)).copysign(h0).to(t.dtype)

    def _give_up(self, why: str, t: Tensor, error: Tensor, which: Tensor) -> None:
        i = int(which.nonzero()[0])
        raise Stalled(
            f"{self.kind} stalled at t={float(t[i]):.6g} with a scaled error of"
            f" {float(error[i]):.3g}: {why}; loosen rtol={self.rtol:g} and atol={self.atol:g},"
            " raise max_steps, or use a fixed-step solver such as heun"
        )


def polynomial(rows: Sequence[Sequence[float]], k: list[Tensor], theta: Tensor) -> Tensor:
    """`sum_i k_i sum_j rows[i][j] theta^(j+1)`: the usual form of dense output, over h."""
    total = torch.zeros_like(k[0])
    for row, stage in zip(rows, k, strict=True):
        weight = torch.stack([c * theta ** (j + 1) for j, c in enumerate(row)]).sum(0)
        total = total + expand_like(weight, stage).to(stage.dtype) * stage
    return total


def weighted(weights: Sequence[float], k: list[Tensor]) -> Tensor:
    """`sum_i w_i k_i`, without the terms that are zero."""
    (first, stage), *rest = [(w, v) for w, v in zip(weights, k, strict=False) if w != 0]
    total = stage * first
    for w, v in rest:
        total = total.add(v, alpha=w)
    return total


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample: [B, *D] -> [B]."""
    return mean_flat(x**2).sqrt()
