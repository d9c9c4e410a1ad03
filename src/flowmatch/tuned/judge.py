"""Judging solvers by their samples: nearness to the trajectories is not yet quality.

Where a network is far from perfect, noise added on the way can mend what its trajectories get
wrong, and then solvers that follow no trajectory are the better ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from flowmatch.dealing import Dealt
from flowmatch.evaluation import Scores, Sweep
from flowmatch.evaluation.extraction import extract
from flowmatch.evaluation.preparation import shown
from flowmatch.evaluation.scores import ImageScores
from flowmatch.evaluation.sweep import FlowSamples
from flowmatch.flow import Flow
from flowmatch.markdown import table
from flowmatch.solvers import (
    AnySolver,
    EDMGrid,
    GridConfig,
    GridSolver,
    Heun,
    LogitNormalGrid,
    ShiftedGrid,
    UniformGrid,
    UniPC,
    describe,
)
from flowmatch.training.settings import LEAST_EVALUATED
from flowmatch.tuned.job import TuneJob
from flowmatch.tuning import Cost, Tuned, grid_title, largest

if TYPE_CHECKING:
    from accelerate import Accelerator

_FINALISTS = 4
"""Solvers taken over from the search by trajectories."""
_SHARES = (4, 2, 1)
"""The rounds: of the samples, one in so many; after each, the better half stays."""
_NOISY_GRIDS: tuple[GridConfig, ...] = (
    ShiftedGrid(shift=0.5),
    ShiftedGrid(shift=2.0),
    EDMGrid(),
    LogitNormalGrid(),
)
"""Tried after the first round, if a solver that adds noise leads."""


@dataclass(frozen=True)
class Judged:
    """A solver and the distance of its samples to the training data."""

    solver: GridSolver
    nfe: int
    distance: float
    samples: int
    """How many it was judged by; the solvers of the last round saw the most."""


def contenders(found: Tuned, job: TuneJob, cost: Cost) -> list[GridSolver]:
    """The best by trajectories, and on uniform grids Heun, UniPC and all that add noise."""
    best = [tried.solver for tried in (found.best, *found.others)][:_FINALISTS]
    kinds: list[type[AnySolver]] = [Heun, UniPC, *(k for k in get_args(AnySolver) if k.stochastic)]
    wanted = [k for k in kinds if job.kinds is None or k.kind in job.kinds]
    plain = [largest(k, UniformGrid(), job.nfe, cost) for k in wanted if issubclass(k, GridSolver)]
    return list(dict.fromkeys([*best, *(solver for solver in plain if solver is not None)]))


def judge(
    flow: Flow,
    solvers: Sequence[GridSolver],
    job: TuneJob,
    cost: Cost,
    scores: Scores,
    accelerator: Accelerator,
    *,
    dealt: Dealt,
) -> list[Judged]:
    """Draw from each solver and rank by the distance to the training data, best first.

    All see the same noise. Those of the worse half leave after a quarter of the samples, and again
    after half of them: the places of those that left early are rough.

    Args:
        flow: the model, on the accelerator's device.
        solvers: who competes; `contenders` gives them.
        job: how many samples, which noise, which guidance.
        cost: what a solver costs, for the grids that join later.
        scores: what samples are measured by.
        dealt: what samples are conditioned on.
    """
    drawn = _Drawn(flow, job, dealt, scores, accelerator)
    sizes = [max(job.judged // share, LEAST_EVALUATED) for share in _SHARES]
    field, left = list(solvers), list[Judged]()
    with shown("judging", _expected(len(field), sizes), accelerator) as advance:
        for turn, size in enumerate(sizes):
            ranked = sorted(
                (Judged(s, cost(s), drawn.distance(s, size, advance), size) for s in field),
                key=lambda j: j.distance,
            )
            if turn == len(sizes) - 1:
                return [*ranked, *left]
            kept = _half(len(ranked))
            left = [*ranked[kept:], *left]
            field = [j.solver for j in ranked[:kept]]
            if turn == 0 and field[0].stochastic:
                others = (largest(type(field[0]), g, job.nfe, cost) for g in _NOISY_GRIDS)
                field += [s for s in others if s is not None and s not in field]
    raise AssertionError("the last round returns")


def _half(count: int) -> int:
    return max(math.ceil(count / 2), 2)


def _expected(count: int, sizes: Sequence[int]) -> int:
    """How many samples will be drawn at most."""
    total, had = len(_NOISY_GRIDS) * sizes[0], 0
    for turn, size in enumerate(sizes):
        total, had = total + count * (size - had), size
        count = _half(count) + (0 if turn else len(_NOISY_GRIDS))
    return total


class _Drawn:
    """Features of the samples of each solver, drawn when they are needed and kept."""

    def __init__(
        self, flow: Flow, job: TuneJob, dealt: Dealt, scores: Scores, accelerator: Accelerator
    ) -> None:
        self._flow, self._scores, self._accelerator = flow, scores, accelerator
        self._sweep = Sweep(
            max(job.judged, LEAST_EVALUATED),
            batch=job.batch,
            seed=job.stream,
            guidance=job.guidance,
            dealt=dealt,
        )
        self._vectors: dict[GridSolver, Tensor] = {}

    def distance(self, solver: GridSolver, count: int, progress: Callable[[int], None]) -> float:
        """Of the solver's first `count` samples; infinite where one is not finite."""
        have = self._vectors.get(solver)
        start = 0 if have is None else len(have)
        net = self._scores.net if isinstance(self._scores, ImageScores) else None
        subject = FlowSamples(self._flow, solver, self._sweep, self._accelerator)
        if count > start:
            found = extract(
                subject, range(start, count), net, self._accelerator, batch=self._sweep.batch
            )
            if found.nonfinite:
                return math.inf
            new = found.vectors
            self._vectors[solver] = new if have is None else torch.cat([have, new])
            progress(count - start)
        value = self._scores.distance(self._vectors[solver])
        return value if math.isfinite(value) else math.inf


def as_table(judged: Sequence[Judged], metric: str) -> str:
    """The ranking in Markdown, with what must be known of it."""
    rows = [["", "solver", "grid", "steps", "NFE", metric, "samples"]]
    for place, j in enumerate(judged):
        kind, label = describe(j.solver)["kind"], "" if place else "chosen"
        numbers = (str(j.solver.steps), str(j.nfe), f"{j.distance:.4g}", str(j.samples))
        rows.append([label, kind, grid_title(j.solver), *numbers])
    return (
        f"{table(rows)}\n\n{metric}: distance of the samples to the training data; fewer samples"
        " score worse, and a difference of some percent is chance. Decided by these samples, the"
        " choice's own number flatters it: `flowmatch evaluate` draws others."
    )
