"""Tuning a solver and its grid to a field, from start to held-out error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from flowmatch.flow import Cond, Field, as_cond, flow_inside
from flowmatch.sampling import path_of
from flowmatch.solvers import AB3, EDMGrid, Euler, GridSolver, Heun, Schedule, UniformGrid
from flowmatch.tuning.candidates import Cost, candidates, field_calls, largest
from flowmatch.tuning.halving import halving, rounds
from flowmatch.tuning.refine import refine
from flowmatch.tuning.trials import Trials, rows_of

_REFINED = 2
"""Solvers whose grids are refined."""
_CHECKED = 16
"""Samples that the reference is computed anew for, with twice its steps."""

_UP_TO_OPEN_END = EDMGrid(sigma_max=10.0, sigma_min=0.0102)
"""The reference's grid where the velocity at t=1 is open: to t=0.99, and one Euler step from there.

There the velocity grows like 1/(1-t) times the network's error, which equal steps cannot follow.
"""

Ranked = tuple[float, GridSolver]
"""A solver behind its error on the samples that are fitted to."""


@dataclass(frozen=True)
class Tried:
    """One solver with what it costs and how far off it ends."""

    solver: GridSolver
    nfe: int
    """Network evaluations a sample."""
    fitted: float
    """Error on the samples that grids were fitted to."""
    compared: float
    """Error on other samples, by which the choice was made."""
    error: float
    """Error on yet others, which nothing was decided by."""


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search."""

    best: Tried
    others: tuple[Tried, ...]
    """The finalists that were not chosen, best first."""
    baselines: dict[str, Tried]
    """Euler and Heun on uniform grids at the same budget, where it allows them."""
    reference: GridSolver
    reference_error: float
    """Distance of the reference from one with twice its steps, on a few samples."""
    samples: int
    """Samples that were fitted to; as many were compared on, and the rest reported on."""
    held_out: int
    evaluations: int
    """Calls of the field, counted for each sample."""
    seconds: float = field(compare=False)

    @property
    def solver(self) -> GridSolver:
        """The chosen solver."""
        return self.best.solver

    @property
    def error(self) -> float:
        """Its error on the samples that nothing was decided by."""
        return self.best.error


def tune(
    field: Field,
    x0: Tensor,
    nfe: int,
    cond: Cond | Tensor | None = None,
    *,
    path: Schedule | None = None,
    among: Sequence[GridSolver] | None = None,
    cost: Cost = field_calls,
    reference_steps: int | None = None,
    clamp: bool = False,
    batch: int = 100,
    budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tuned:
    """Choose the solver and the time grid that end nearest to the field's own trajectories.

    Candidates are thinned out by successive halving, then the grids of the best two solvers are
    fitted freely. All of this sees the first third of `x0`. With 20 times to fit, a few samples can
    be fitted by chance, so the second third decides between what came to the end; and the third
    third, which decides nothing, gives the errors that count. Nearness to the trajectories says how
    well the field is solved, not how good it is: a metric of the samples may rank otherwise.

    Args:
        field: `(x [B, *D], t [B], cond) -> v [B, *D]`; it must be a function of its arguments
            alone, so no guidance with momentum.
        x0: where trajectories start, [B, *D], B >= 3.
        nfe: the budget in network evaluations a sample.
        cond: as of `sample`.
        path: the affine path, for solvers that use it; None asks the field.
        among: the solvers to choose from; None is `candidates(nfe, ...)`.
        cost: what a solver costs, in network evaluations a sample.
        reference_steps: of the fine solver, AB3; None is 10 for each evaluation of the budget, at
            least 100; it must be more than `nfe`. Its grid is uniform, but of a flow that predicts
            x1 dense towards t = 0.99, from where one step leads to the x1 that is predicted there.
        clamp: compare what is left in [-1, 1], the range of images.
        batch: samples computed at once.
        budget: evaluations (counted for each sample) that fitting grids may take; 0 leaves the
            families of grids as they are, None is `60 nfe` for each sample that is fitted to. From
            about 30 steps on, that is too little to fit each time.
        progress: called with the evaluations done and about how many there will be.
    Raises:
        ValueError: too few samples, no candidate that fits the budget, none that ends anywhere, or
            a reference that is no finer than they.
    Source: error against a fine solver as the criterion: Shaul et al. 2024, "Bespoke Solvers for
    Generative Flow Models", section 2.
    """
    if len(x0) < 3:
        raise ValueError(
            f"tuning needs samples to fit, compare and report, 3 or more; got {len(x0)}"
        )
    began = time.perf_counter()
    path = path_of(field) if path is None else path
    chosen = candidates(nfe, path=path, cost=cost) if among is None else _within(nfe, among, cost)
    fine = max(100, 10 * nfe) if reference_steps is None else reference_steps
    if fine <= nfe:
        raise ValueError(f"the reference must have more steps than the budget of {nfe}, got {fine}")
    reference = _reference(field, fine)
    third, cond = len(x0) // 3, as_cond(cond)
    budget = 60 * nfe * third if budget is None else budget
    expected = _expected(chosen, reference, third, len(x0), budget)
    done = 0

    def told(amount: int) -> None:
        nonlocal done
        done += amount
        if progress is not None:
            progress(done, max(done, expected))

    on = partial(
        Trials, field, reference=reference, path=path, clamp=clamp, batch=batch, progress=told
    )
    thirds = (slice(third), slice(third, 2 * third), slice(2 * third, None))
    fit, compare, held = (on(x0[rows], rows_of(cond, rows)) for rows in thirds)
    finer = replace(reference, steps=2 * reference.steps)
    off = fit.error(finer, min(_CHECKED, third))
    ranked = _search(fit, chosen, budget, off, lambda solver: cost(solver) <= nfe)
    finalists = sorted(((compare.error(s), e, s) for e, s in ranked), key=lambda place: place[0])
    if not math.isfinite(finalists[0][0]):
        raise ValueError("every solver leaves the field's trajectories without a finite end")
    tried = [Tried(s, cost(s), fitted, e, held.error(s)) for e, fitted, s in finalists]
    plain = [s for kind in (Euler, Heun) if (s := largest(kind, UniformGrid(), nfe, cost))]
    baselines = {
        _kind(s): Tried(s, cost(s), fit.error(s), compare.error(s), held.error(s)) for s in plain
    }
    return Tuned(
        best=tried[0],
        others=tuple(tried[1:]),
        baselines=baselines,
        reference=reference,
        reference_error=off,
        samples=third,
        held_out=len(held),
        evaluations=sum(trials.evaluations for trials in (fit, compare, held)),
        seconds=time.perf_counter() - began,
    )


def _reference(field: Field, steps: int) -> GridSolver:
    """The fine solver for a field, which it never calls at t=1."""
    flow = flow_inside(field)
    if flow is not None and flow.open_at_data:
        return AB3(steps=steps, grid=_UP_TO_OPEN_END)
    return AB3(steps=steps, safe_end=False)  # its order up to the end


def _search(
    trials: Trials,
    chosen: Sequence[GridSolver],
    budget: int,
    floor: float,
    fits: Callable[[GridSolver], bool],
) -> list[Ranked]:
    """The best of each solver, and the best two on fitted grids: with their errors."""
    best: dict[str, Ranked] = {}
    for error, solver in halving(trials, chosen):
        best.setdefault(_kind(solver), (error, solver))
    ranked, started = list(best.values()), trials.evaluations
    fitted: list[Ranked] = []
    for _, solver in ranked[:_REFINED]:
        share = budget // min(_REFINED, len(ranked))
        better = refine(trials, solver, budget=share, floor=floor, fits=fits)
        if better is not solver:
            fitted.append((trials.error(better), better))
    if fitted:
        k = fitted.index(min(fitted, key=lambda place: place[0]))
        left = budget - (trials.evaluations - started)
        better = refine(trials, fitted[k][1], budget=left, floor=floor, fits=fits)
        fitted[k] = trials.error(better), better
    return [*ranked, *fitted]


def _kind(solver: GridSolver) -> str:
    return solver.kind  # type: ignore[attr-defined, no-any-return]


def _within(nfe: int, among: Sequence[GridSolver], cost: Cost) -> list[GridSolver]:
    """Those that fit the budget."""
    fitting = [solver for solver in among if cost(solver) <= nfe]
    if not fitting:
        raise ValueError(f"none of {len(among)} solvers fits a budget of {nfe}; raise it")
    return fitting


def _expected(
    chosen: Sequence[GridSolver], reference: GridSolver, fit: int, samples: int, budget: int
) -> int:
    """About how many evaluations there will be."""
    dearest = max(solver.nfe for solver in chosen)
    known = reference.nfe * (samples + 2 * min(_CHECKED, fit))
    halved = sum(size * rows for size, rows in rounds(len(chosen), fit)) * dearest
    return known + halved + budget
