"""Sampling: noise that depends on its seed alone, and a field integrated from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowmatch.flow import Cond, Field, as_cond
from flowmatch.randomness import keyed_generator
from flowmatch.solvers import GridSolver, Heun, OnPath, Schedule, Solver, StepNoise, TimeField
from flowmatch.tensors import batch_time, send, time_dtype


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


def batch_times(times: Sequence[float], x: Tensor) -> dict[float, Tensor]:
    """`batch_time` of many times at once, by time.

    A solver's times are known before it runs; making a tensor at every call would be a third of the
    loop's cost, and on a GPU a kernel each.
    """
    table = send(torch.tensor(times, dtype=time_dtype(x)), x.device)
    return dict(zip(times, table[:, None].repeat(1, len(x)).unbind(), strict=True))


def bind(
    field: Field,
    cond: Cond | Tensor | None = None,
    *,
    path: Schedule | None = None,
    noise: StepNoise | None = None,
) -> TimeField:
    """The `f(x, t)` that a solver integrates: `field` under a fixed condition.

    Args:
        field: any callable `(x [B, *D], t [B], cond) -> v [B, *D]`.
        cond: None, a mapping from names to tensors, or a bare label tensor [B].
        path: the affine path, for solvers that use it; None asks the field.
        noise: where a stochastic solver's noise comes from; None is torch's global generator.
    """
    return _on_path(_timed(field, as_cond(cond), {}), field, path, noise)


def _timed(field: Field, cond: Cond | None, ready: dict[float, Tensor]) -> TimeField:
    def f(x: Tensor, t: float | Tensor) -> Tensor:
        row = ready.get(t) if type(t) is float else None
        if row is None or row.shape[0] != x.shape[0]:
            row = batch_time(t, x)
        return field(x, row, cond)

    return f


def _on_path(
    f: TimeField, field: Field, path: Schedule | None, noise: StepNoise | None
) -> TimeField:
    path = path_of(field) if path is None else path
    return f if path is None else OnPath(f, path, noise or (lambda k, x: torch.randn_like(x)))


def check_times(t0: float, t1: float, *, forward: bool = False) -> None:
    """Refuse times outside [0, 1], where a flow is not defined; `forward`: and t0 >= t1."""
    if not (0 <= t0 <= 1 and 0 <= t1 <= 1):
        raise ValueError(f"times lie in [0, 1], from noise to data; got t0={t0:g} and t1={t1:g}")
    if forward and t0 >= t1:
        raise ValueError(f"t0 is the time of the noise and lies before t1; got {t0:g} and {t1:g}")


def checked_cond(cond: Cond | Tensor | None, x: Tensor) -> Cond | None:
    """The condition as a mapping, refused where it does not belong to the batch `x` [B, *D].

    Raises:
        TypeError: it is neither a tensor nor a mapping to tensors.
        ValueError: it has another length.
    """
    named = as_cond(cond)
    if named is None:
        return None
    if not isinstance(named, Mapping) or not all(isinstance(v, Tensor) for v in named.values()):
        raise TypeError(
            "cond must be a label tensor [B] or a mapping from names to tensors, got"
            f" {type(cond).__name__}; write torch.tensor([...])"
        )
    for name, value in named.items():
        if value.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} for a batch of {len(x)}; give one a sample"
            )
    return named


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
        TypeError: the solver is no `Solver`, e.g. its name.
        ValueError: the solver needs the path and nobody knows it, a time outside [0, 1], or a
            condition of another length than the batch.
    """
    if not isinstance(solver, Solver):
        raise TypeError(
            f"the solver must be a Solver such as fm.solvers.Heun(steps=25), got {solver!r}"
        )
    check_times(t0, t1)
    times = solver.asked(t0, t1) if isinstance(solver, GridSolver) else ()
    f = _timed(field, checked_cond(cond, x0), batch_times(times, x0))
    if solver.needs_path:  # a layer around f that the others need not pay for
        noise = step_noise(seeds, stream=stream) if seeds is not None else None
        f = _on_path(f, field, path, noise)
    return solver.integrate(f, x0, t0=t0, t1=t1)
