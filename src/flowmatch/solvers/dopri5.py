"""The adaptive method of Dormand and Prince, with a step size of its own for each sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowmatch.solvers.solver import Solver, Stalled, TimeField
from flowmatch.tensors import batch_time, expand_like, mean_flat

# The tableau of Dormand & Prince 1980, table 2: nodes, stages, and weights of orders 5 and 4.
# The seventh stage is the first of the next step, so an accepted step costs six calls.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
_ERROR = tuple(b - c for b, c in zip((*_STAGES[-1], 0.0), _FOURTH, strict=True))


@dataclass(frozen=True, kw_only=True)
class Dopri5(Solver):
    """Dormand-Prince 5(4) with a PI step-size controller, run for each sample on its own clock.

    Each sample of the batch has its own time and step size, so a sample's result does not depend
    on which others it was computed with. The batch runs until its slowest sample is done. With
    `safe_end` the method stops at `1 - 1e-3`, and one Euler step leads from there to the datum.

    Args:
        rtol, atol: tolerances of the local error, both > 0: a step is accepted when the root mean
            square of `error / (atol + rtol * max(|x|, |x_new|))` is at most 1.
        max_steps: give up after so many tried steps.
    Source: Dormand & Prince 1980; controller: Hairer, Norsett & Wanner 1993, "Solving ODEs I",
    section II.4, and Hairer & Wanner 1996, section IV.2 (PI).
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    kind: Literal["dopri5"] = "dopri5"
    order: ClassVar[int] = 5
    stages: ClassVar[int] = 6

    def __post_init__(self) -> None:
        if self.rtol <= 0 or self.atol <= 0:
            raise ValueError(f"dopri5 needs rtol > 0 and atol > 0, got {self.rtol} and {self.atol}")
        if self.max_steps < 1:
            raise ValueError(f"dopri5 needs max_steps >= 1, got {self.max_steps}")

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield `(t of the slowest sample, x)` after each tried step.

        Raises:
            Stalled: the step size fell to the resolution of the time, or `max_steps` passed.
        """
        safe = self.ends_at_data(t0, t1)
        end = max(t0, 1 - 1e-3) if safe else t1
        for t, x in self._adaptive(f, x, t0, end):  # noqa: B020 (x is carried on)
            yield t, x
        if safe:
            yield t1, x.add(f(x, end), alpha=t1 - end)

    def _adaptive(
        self, f: TimeField, x: Tensor, t0: float, t1: float
    ) -> Iterator[tuple[float, Tensor]]:
        t = batch_time(t0, x).clone()
        resolution = 10 * torch.finfo(t.dtype).eps
        k1 = f(x, t)
        h = self._first_step(f, x, t, k1, t1 - t0)
        last_error = torch.ones_like(h)
        for _ in range(self.max_steps):
            left = t1 - t
            if not bool(left.any()):
                return
            final = h.abs() >= left.abs()
            h = torch.where(final, left, h)
            x_new, k_new, error = self._try(f, x, t, h, k1)
            accept = error <= 1
            t = torch.where(accept, torch.where(final, t1, t + h), t)
            keep = expand_like(accept, x)
            x, k1 = torch.where(keep, x_new, x), torch.where(keep, k_new, k1)
            slowest = t.detach().min() if t1 > t0 else t.detach().max()
            yield float(slowest), x
            # a NaN error (f overflowed) counts as a very large one
            error = error.nan_to_num(1e10, posinf=1e10).clamp(1e-10, 1e10)
            growth = 0.9 * error ** (-0.7 / 5) * torch.where(accept, last_error ** (0.4 / 5), 1.0)
            h = h * torch.where(accept, growth, growth.clamp(max=0.9)).clamp(0.2, 10.0)
            last_error = torch.where(accept, error, last_error)
            stuck = (h.abs() < resolution) & (t != t1)
            if bool(stuck.any()):
                self._give_up("its step fell below the resolution of time", t, error, stuck)
        if bool((t != t1).any()):
            self._give_up(f"{self.max_steps} steps were not enough", t, error, t != t1)

    def _try(
        self, f: TimeField, x: Tensor, t: Tensor, h: Tensor, k1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of size `h` [B]: the new x, f there, and the scaled error [B]."""
        step = expand_like(h, x).to(x.dtype)
        k = [k1]
        for node, row in zip(_NODES, _STAGES, strict=True):
            x_new = x + step * _weighted(row, k)
            k.append(f(x_new, t + node * h))
        scale = self.atol + self.rtol * torch.maximum(x.abs(), x_new.abs())
        error = mean_flat((step * _weighted(_ERROR, k) / scale) ** 2).sqrt()
        return x_new, k[-1], error

    def _first_step(self, f: TimeField, x: Tensor, t: Tensor, k1: Tensor, span: float) -> Tensor:
        """Hairer's guess of a first step from the sizes of x, x' and x'': [B], signed."""
        scale = self.atol + self.rtol * x.abs()
        d0 = mean_flat((x / scale) ** 2).sqrt()
        d1 = mean_flat((k1 / scale) ** 2).sqrt()
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp(max=abs(span))
        h0 = h0.to(t.dtype).copysign(torch.full_like(t, span))
        k2 = f(x + expand_like(h0, x) * k1, t + h0)
        d2 = mean_flat(((k2 - k1) / scale) ** 2).sqrt() / h0.abs()
        steepest = torch.maximum(d1, d2)
        h1 = torch.where(steepest <= 1e-15, h0.abs() * 1e-3, (0.01 / steepest) ** (1 / 5))
        return torch.minimum(100 * h0.abs(), h1).clamp(max=abs(span)).copysign(h0).to(t.dtype)

    def _give_up(self, why: str, t: Tensor, error: Tensor, which: Tensor) -> None:
        i = int(which.nonzero()[0])
        raise Stalled(
            f"dopri5 stalled at t={float(t[i]):.6g} with a scaled error of {float(error[i]):.3g}:"
            f" {why}; loosen rtol={self.rtol:g} and atol={self.atol:g}, raise max_steps, or use a"
            " fixed-step solver such as heun"
        )


def _weighted(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    terms = [w * v for w, v in zip(weights, k, strict=True) if w != 0]
    return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
