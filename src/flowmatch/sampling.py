"""Sampling: noise that depends on its seed alone, and a field integrated from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowmatch.flow import Cond, Field, as_cond
from flowmatch.randomness import keyed_generator
from flowmatch.solvers import GridSolver, Heun, OnPath, Schedule, Solver, StepNoise, TimeField
from flowmatch.tensors import batch_time, send


def noise(seeds: Iterable[int], shape: tuple[int, ...], *, stream: int = 0) -> Tensor:
    """Standard normal noise, one seed a sample: [len(seeds), *shape], float32, on the CPU.

    Row i depends on `(stream, seeds[i])` alone, whatever it is drawn together with. It is drawn on
    the CPU so that every device starts from the same numbers.
    """
    rows = [torch.randn(shape, generator=keyed_generator("noise", stream, s)) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def step_noise(seeds: Sequence[int], *, stream: int = 0) -> StepNoise:
    """The noise that a stochastic solver adds on its way, one seed a sample.

    Row i of draw k depends on `(stream, seeds[i], k)` alone, as `noise` does.
    """

    def draw(k: int, x: Tensor) -> Tensor:
        if len(seeds) != len(x):
            raise ValueError(f"{len(seeds)} seeds for a batch of {len(x)}; give one a sample")
        shape = x.shape[1:]
        keys = (("step noise", stream, seed, k) for seed in seeds)
        rows = torch.stack([torch.randn(shape, generator=keyed_generator(*key)) for key in keys])
        return send(rows, x.device).to(x.dtype)

    return draw


def path_of(field: Field) -> Schedule | None:
    """The affine path of a flow, also when other fields are wrapped around it; None if unknown."""
    inner: Any = field
    while inner is not None:
        path = getattr(inner, "path", None)
        if path is not None:
            return path  # type: ignore[no-any-return]
        inner = getattr(inner, "field", None)
    return None


class Clock:
    """`batch_time` that makes the tensors of known times in one go, each once.

    A solver's times are known before it runs; making a tensor at every call would be a third of the
    loop's cost, and on a GPU a kernel each.
    """

    def __init__(self, times: Sequence[float]) -> None:
        self._times = times
        self._rows: dict[float, Tensor] = {}
        self._made_for: object = None

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return batch_time(t, x)
        made_for = (x.shape[0], x.dtype, x.device)
        if made_for != self._made_for:
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            table = send(torch.tensor(self._times, dtype=wide), x.device)
            rows = table[:, None].repeat(1, x.shape[0]).unbind()
            self._rows, self._made_for = dict(zip(self._times, rows, strict=True)), made_for
        row = self._rows.get(t)
        return batch_time(t, x) if row is None else row


def bind(
    field: Field,
    cond: Cond | Tensor | None = None,
    *,
    path: Schedule | None = None,
    noise: StepNoise | None = None,
    times: Sequence[float] = (),
) -> TimeField:
    """The `f(x, t)` that a solver integrates: `field` under a fixed condition.

    Args:
        field: any callable `(x [B, *D], t [B], cond) -> v [B, *D]`.
        cond: None, a mapping from names to tensors, or a bare label tensor [B].
        path: the affine path, for solvers that use it; None asks the field.
        noise: where a stochastic solver's noise comes from; None is torch's global generator.
        times: at which `f` will be asked; only a matter of speed.
    """
    cond, clock = as_cond(cond), Clock(times)

    def f(x: Tensor, t: float | Tensor) -> Tensor:
        return field(x, clock(t, x), cond)

    path = path_of(field) if path is None else path
    if path is None:
        return f
    return OnPath(f, path, noise or (lambda k, x: torch.randn_like(x)))


@torch.no_grad()
def sample(
    field: Field,
    x0: Tensor,
    solver: Solver = Heun(steps=50),
    cond: Cond | Tensor | None = None,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    path: Schedule | None = None,
    seeds: Sequence[int] | None = None,
    stream: int = 0,
) -> Tensor:
    """Integrate `field` from `x0` at `t0` to `t1`; from 1 to 0 it maps data to noise.

    Args:
        field: any callable `(x [B, *D], t [B], cond) -> v [B, *D]`, e.g. a `Flow`.
        x0: where to start, [B, *D].
        solver: the integrator.
        cond: None, a mapping from names to tensors, or a bare label tensor [B].
        path: the affine path, for solvers that use it; None asks the field (a `Flow` knows).
        seeds: one a sample, for the noise of stochastic solvers, which then depends on
            `(stream, seed)` alone; None draws it from torch's global generator.
        stream: which family of seeds.
    Returns:
        The state at `t1`, [B, *D]. No gradient is kept: integrate `bind(field, cond)` with the
        solver itself to differentiate through the trajectory.
    Raises:
        ValueError: the solver needs the path and nobody knows it.
    """
    noise = step_noise(seeds, stream=stream) if seeds is not None else None
    times = solver.asked(t0, t1) if isinstance(solver, GridSolver) else ()
    f = bind(field, cond, path=path, noise=noise, times=times)
    return solver.integrate(f, x0, t0=t0, t1=t1)
