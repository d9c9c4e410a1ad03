"""Sampling: noise that depends on its seed alone, and a field integrated from it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from flowmatch.flow import Cond, Field, as_cond
from flowmatch.randomness import keyed_generator
from flowmatch.solvers import Heun, Solver, TimeField
from flowmatch.tensors import batch_time


def noise(seeds: Iterable[int], shape: tuple[int, ...], *, stream: int = 0) -> Tensor:
    """Standard normal noise, one seed a sample: [len(seeds), *shape], float32, on the CPU.

    Row i depends on `(stream, seeds[i])` alone, whatever it is drawn together with. It is drawn on
    the CPU so that every device starts from the same numbers.
    """
    rows = [torch.randn(shape, generator=keyed_generator("noise", stream, s)) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def bind(field: Field, cond: Cond | Tensor | None = None) -> TimeField:
    """The `f(x, t)` that a solver integrates: `field` under a fixed condition."""
    cond = as_cond(cond)

    def f(x: Tensor, t: float | Tensor) -> Tensor:
        return field(x, batch_time(t, x), cond)

    return f


@torch.no_grad()
def sample(
    field: Field,
    x0: Tensor,
    solver: Solver = Heun(steps=50),
    cond: Cond | Tensor | None = None,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
) -> Tensor:
    """Integrate `field` from `x0` at `t0` to `t1`; from 1 to 0 it maps data to noise.

    Args:
        field: any callable `(x [B, *D], t [B], cond) -> v [B, *D]`, e.g. a `Flow`.
        x0: where to start, [B, *D].
        solver: the integrator.
        cond: None, a mapping from names to tensors, or a bare label tensor [B].
    Returns:
        The state at `t1`, [B, *D]. No gradient is kept: integrate `bind(field, cond)` with the
        solver itself to differentiate through the trajectory.
    """
    return solver.integrate(bind(field, cond), x0, t0=t0, t1=t1)
