"""Trials: how far from the end of its own trajectory a solver leaves a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowmatch.flow import Cond, Field, as_cond
from flowmatch.guidance import CountNFE
from flowmatch.sampling import sample
from flowmatch.solvers import GridSolver, Schedule, Solver


class Trials:
    """Samples whose trajectories are known from a fine solver, to measure coarse ones on.

        error = mean over samples of sqrt(mean over values of (x1 - x1_fine)^2)

    Args:
        field: `(x [B, *D], t [B], cond) -> v [B, *D]`.
        x0: where the trajectories start, [B, *D].
        cond: as of `sample`.
        reference: the fine solver.
        path: the affine path, for solvers that use it; None asks the field.
        clamp: compare what is left in [-1, 1], the range of images.
        batch: samples computed at once.
        progress: called with the evaluations just done.
    """

    def __init__(
        self,
        field: Field,
        x0: Tensor,
        cond: Cond | Tensor | None = None,
        *,
        reference: GridSolver,
        path: Schedule | None = None,
        clamp: bool = False,
        batch: int = 100,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.evaluations = 0
        """Calls of the field so far, counted for each sample."""
        self._counted = CountNFE(field)
        self._x0, self._cond, self._path = x0, as_cond(cond), path
        self._clamp, self._batch, self._progress = clamp, batch, progress
        self._ends = self._integrate(reference, len(x0))

    def __len__(self) -> int:
        return len(self._x0)

    def residuals(self, solver: Solver, rows: int | None = None) -> Tensor:
        """`x1 - x1_fine` of the first `rows` samples (None is all), [rows, values]."""
        ends = self._ends[:rows]
        return (self._integrate(solver, len(ends)) - ends).flatten(1)

    def error(self, solver: Solver, rows: int | None = None) -> float:
        """The error of a solver over the first `rows` samples; infinite if it diverges."""
        return mean_error(self.residuals(solver, rows))

    def _integrate(self, solver: Solver, rows: int) -> Tensor:
        """Where the first `rows` samples end, [rows, *D]."""
        ends = []
        for start in range(0, rows, self._batch):
            part = slice(start, min(start + self._batch, rows))
            self._counted.nfe = 0
            x1 = sample(
                self._counted, self._x0[part], solver, rows_of(self._cond, part), path=self._path
            )
            ends.append(x1.clamp(-1, 1) if self._clamp else x1)
            done = self._counted.nfe * len(x1)
            self.evaluations += done
            if self._progress is not None:
                self._progress(done)
        return torch.cat(ends)


def rows_of(cond: Cond | None, rows: slice) -> Cond | None:
    """The conditions of some of the samples."""
    return None if cond is None else {name: value[rows] for name, value in cond.items()}


def sample_errors(residuals: Tensor) -> Tensor:
    """Root mean square over the values of each sample, [B, values] -> [B]."""
    return residuals.square().mean(1).sqrt()


def mean_error(residuals: Tensor) -> float:
    """Mean of the samples' errors, one number; what is not a number counts as infinite."""
    return sample_errors(residuals).mean().nan_to_num(torch.inf).item()
