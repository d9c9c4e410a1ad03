"""Embedded Runge-Kutta methods with a step size of its own for each sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowmatch.solvers.solver import Solver, Stalled, TimeField
from flowmatch.solvers.tableau import Numbers, Tableau, like, rms, times_for
from flowmatch.tensors import time_dtype


class Step(NamedTuple):
    """What one tried step of size `h` [B] from `t` [B] found; Euler's has one stage."""

    t: Numbers
    h: Numbers
    arrived: Numbers
    """`t + h`, as the clock has it after the step."""
    x: Tensor
    x_new: Tensor
    k: list[Tensor]
    accepted: npt.NDArray[np.bool_]


_MOST = 1e10
"""The largest scaled error that is told apart, and what a NaN counts as."""
_LOST = "the state or the field is not finite there"

Moved = tuple[float, Tensor, Step]
"""Time of the slowest sample, the states, and the step that was tried."""


@dataclass(frozen=True, kw_only=True)
class Adaptive(Solver, ABC):
    """A Runge-Kutta pair with a PI step-size controller, run for each sample on its own clock.

    Each sample of the batch has its own time and step size, so a sample's result does not depend
    on which others it was computed with. The batch runs until its slowest sample is done. The
    clocks are kept on the host: their arithmetic is many small operations, each a kernel on a GPU,
    and the host must know anyway whether all are done. A state in half precision is carried in
    float32 between the calls of the field. With `safe_end` the method stops at `1 - 1e-3`, and one
    Euler step leads from there to the datum.

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
        if not (0 < self.rtol < math.inf and 0 < self.atol < math.inf):
            raise ValueError(
                f"{self.kind} needs finite rtol > 0 and atol > 0, got {self.rtol} and {self.atol}"
            )
        if self.max_steps < 1:
            raise ValueError(f"{self.kind} needs max_steps >= 1, got {self.max_steps}")

    @abstractmethod
    def tableau(self) -> Tableau:
        """The method's coefficients."""

    def norm(self, errors: list[Numbers]) -> Numbers:
        """The local error over its tolerance, from that of each embedded method."""
        return errors[0]

    @abstractmethod
    def interpolate(self, f: TimeField, step: Step, theta: Numbers) -> Tensor:
        """The state at `t + theta h` within a step, theta [B] in [0, 1]: dense output."""

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield `(t of the slowest sample, x)` after each tried step.

        Raises:
            Stalled: the step size fell to the resolution of the time, the field is not finite, or
                `max_steps` passed.
            ValueError: `x` is no [B, *D].
        """
        wide_f, wide_x = _widened(f, x)
        for t, state, _ in self._moves(wide_f, wide_x, t0, t1):
            yield t, state.to(x.dtype)

    def at(
        self,
        f: TimeField,
        x: Tensor,
        times: Sequence[float] | Tensor,
        *,
        t0: float = 0.0,
        t1: float = 1.0,
    ) -> Tensor:
        """The states at given times between `t0` and `t1`, by dense output: [len(times), B, *D].

        Raises:
            Stalled: as in `trajectory`.
            ValueError: a time lies outside `t0` to `t1`, or `x` is no [B, *D].
        """
        times = [float(t) for t in times]
        if any(not min(t0, t1) <= t <= max(t0, t1) for t in times):
            raise ValueError(f"dense output is wanted between t={t0:g} and t={t1:g}, got {times}")
        f, wide = _widened(f, x)
        out = wide.expand(len(times), *x.shape).clone()
        way = math.copysign(1, t1 - t0)
        for _, _, step in self._moves(f, wide, t0, t1):
            for row, t in enumerate(times):
                inside = step.accepted & (way * step.t < way * t) & (way * t <= way * step.arrived)
                if inside.any():
                    theta = (t - step.t) / np.where(step.h == 0, 1, step.h)
                    state = self._within(f, step, theta.clip(0, 1))
                    out[row] = torch.where(like(inside, x), state, out[row])
        return out.to(x.dtype)

    def _within(self, f: TimeField, step: Step, theta: Numbers) -> Tensor:
        if len(step.k) > 1:
            return self.interpolate(f, step, theta)
        return torch.addcmul(step.x, like(theta * step.h, step.x, step.x.dtype), step.k[0])

    def _stop(self, t0: float, t1: float) -> float:
        """Where the adaptive steps end."""
        return max(t0, 1 - 1e-3) if self.ends_at_data(t0, t1) else t1

    def _moves(self, f: TimeField, x: Tensor, t0: float, t1: float) -> Iterator[Moved]:
        stop = self._stop(t0, t1)
        for t, x, step in self._adaptive(f, x, t0, stop):  # noqa: B020
            yield t, x, step
        if stop != t1:
            start, h = np.full(len(x), stop), np.full(len(x), t1 - stop)
            v = f(x, stop)
            end = x.add(v, alpha=t1 - stop)
            yield t1, end, Step(start, h, start + h, x, end, [v], np.full(len(x), True))

    def _adaptive(self, f: TimeField, x: Tensor, t0: float, t1: float) -> Iterator[Moved]:
        if t0 == t1 or not len(x):
            return
        resolution = 10 * torch.finfo(time_dtype(x)).eps
        earlier = np.minimum if t1 > t0 else np.maximum  # of two times: further from t1
        tableau = self.tableau()
        t = np.full(len(x), float(t0))
        k1 = f(x, t0)
        h = self._first_step(f, x, t, k1, t1 - t0)
        h = np.copysign(np.maximum(np.abs(h), resolution), h)
        last_error = np.ones_like(h)
        for _ in range(self.max_steps):
            left = t1 - t
            h = earlier(h, left)
            x_new, k, error = self._try(tableau, f, x, t, h, k1)
            arrived = np.where(h == left, t1, t + h)
            tried = Step(t, h, arrived, x, x_new, k, error <= 1)
            growth = 0.9 * error ** (-0.7 / self.order)
            damped = growth * last_error ** (0.4 / self.order)
            if tried.accepted.all():
                x, k1, t, last_error, growth = x_new, k[-1], arrived, error, damped
            else:
                accept, keep = tried.accepted, like(tried.accepted, x)
                x, k1 = torch.where(keep, x_new, x), torch.where(keep, k[-1], k1)
                t, last_error = np.where(accept, arrived, t), np.where(accept, error, last_error)
                growth = np.where(accept, damped, np.minimum(growth, 0.9))
                stuck = ~(np.abs(h) >= 2 * resolution) & ~accept
                if stuck.any():
                    lost = stuck & ~np.isfinite(rms(x_new) + rms(tried.k[-1]))
                    if lost.any():
                        self._give_up(_LOST, t, error, lost)
                    self._give_up("its step fell to the resolution of time", t, error, stuck)
            h = h * np.minimum(np.maximum(growth, 0.2), 10.0)
            slowest = float(earlier.reduce(t))
            yield slowest, x, tried
            if slowest == t1:
                return
        self._give_up(
            f"{self.max_steps} steps were not enough", t, error, t != t1, more="raise max_steps, "
        )

    def _try(
        self, tableau: Tableau, f: TimeField, x: Tensor, t: Numbers, h: Numbers, k1: Tensor
    ) -> tuple[Tensor, list[Tensor], Numbers]:
        """One step of size `h`: the new x, all stages (the last of them there), and the error."""
        step = like(h, x, x.dtype)
        times = times_for(x, t + tableau.nodes * h).unbind()
        k = [k1]
        for at, stage in zip(times, tableau.stages, strict=True):
            x_new = stage.times(step, x, k)
            k.append(f(x_new, at))
        return x_new, k, self._error(tableau, k, h, x, x_new)

    def _error(
        self, tableau: Tableau, k: list[Tensor], h: Numbers, x: Tensor, x_new: Tensor
    ) -> Numbers:
        """The local error over its tolerance, kept within 1e-10 and 1e10 (`_MOST`)."""
        # what is the same for a whole sample is multiplied on the host
        by = np.abs(h) / self.rtol
        with torch.no_grad():  # gradients flow through the steps, not the choice of their sizes
            scale = torch.maximum(x.abs(), x_new.abs()).add_(self.atol / self.rtol)
            found = [by * abs(e.lead) * rms(e.over_lead(k).div_(scale)) for e in tableau.errors]
        # fmin passes over NaN: where f overflowed, the step was much too large
        error: Numbers = np.maximum(np.fmin(self.norm(found), _MOST), 1 / _MOST)
        return error

    @torch.no_grad()
    def _first_step(self, f: TimeField, x: Tensor, t: Numbers, k1: Tensor, span: float) -> Numbers:
        """Hairer's guess of a first step from the sizes of x, x' and x'': signed."""
        if not (finite := np.isfinite(rms(x) + rms(k1))).all():
            self._give_up(_LOST, t, np.full(len(x), _MOST), ~finite)
        scale = self.atol + self.rtol * x.abs()
        d0, d1 = (np.minimum(rms(v / scale), 1e30) for v in (x, k1))
        h0 = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-5))
        h0 = np.copysign(h0.clip(max=abs(span)), span)
        k2 = f(torch.addcmul(x, like(h0, x, x.dtype), k1), times_for(x, t + h0))
        steepest = np.maximum(d1, rms((k2 - k1) / scale) / np.abs(h0))
        h1 = (0.01 / np.maximum(steepest, 1e-15)) ** (1 / self.order)
        h1 = np.where(steepest <= 1e-15, np.abs(h0) * 1e-3, h1)
        h: Numbers = np.minimum(np.minimum(100 * np.abs(h0), h1), abs(span))
        return np.copysign(h, span)

    def _give_up(
        self, why: str, t: Numbers, error: Numbers, which: npt.NDArray[np.bool_], more: str = ""
    ) -> NoReturn:
        i = int(which.argmax())
        raise Stalled(
            f"{self.kind} stalled at t={t[i]:.6g} in sample {i} with a scaled error of"
            f" {error[i]:.3g}: {why}; {more}loosen rtol={self.rtol:g} and atol={self.atol:g},"
            " or use a fixed-step solver such as heun"
        )


def _widened(f: TimeField, x: Tensor) -> tuple[TimeField, Tensor]:
    """Field and state for the controller: half precision has no digits for its error estimates."""
    if x.ndim < 2:
        raise ValueError(f"an adaptive solver takes samples [B, *D], got shape {tuple(x.shape)}")
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f, x
    return lambda state, t: f(state.to(x.dtype), t).float(), x.float()
