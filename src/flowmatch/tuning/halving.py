"""Successive halving: few samples for many candidates, many samples for the few best."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from flowmatch.solvers import GridSolver
from flowmatch.tuning.trials import Trials

_FIRST = 4
"""Samples of the first round."""
_KEPT = 4
"""One of so many goes on to a round of twice the samples."""
_FINALISTS = 8


def rounds(size: int, samples: int) -> list[tuple[int, int]]:
    """`(candidates, samples of each)` of every round; the last has all the samples."""
    found: list[tuple[int, int]] = []
    for k in count():
        rows = min(_FIRST * 2**k, samples)
        found.append((size, rows))
        if rows == samples:
            return found
        size = min(size, max(size // _KEPT, _FINALISTS))
    raise AssertionError("the rounds end with all the samples")


def halving(trials: Trials, candidates: Sequence[GridSolver]) -> list[tuple[float, GridSolver]]:
    """The finalists with their errors over all samples, best first; of equals the first named.

    Args:
        trials: what they are measured on.
        candidates: at least one.
    Source: Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification", algorithm 1, with
    a fourth kept of each round.
    """
    ranked = [(0.0, solver) for solver in candidates]
    for size, rows in rounds(len(candidates), len(trials)):
        measured = [(trials.error(solver, rows), solver) for _, solver in ranked[:size]]
        ranked = sorted(measured, key=lambda pair: pair[0])
    return ranked
