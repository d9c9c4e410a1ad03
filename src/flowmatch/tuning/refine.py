"""Refining: the times of a grid fitted freely."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.solvers import ExplicitGrid, GridSolver
from flowmatch.tuning.trials import Trials, mean_error, sample_errors

_LEAST_STEP = 1e-4
"""Times may not come nearer to each other than this."""
_DIFFERENCE = 0.05
"""By how much a logarithm of a step is changed to see what follows from it."""
_TRIES = 4
"""How often a step that makes things worse is shortened."""
_ENOUGH = 0.99
"""An iteration that leaves more than this of the error is the last."""


class _Place(NamedTuple):
    """A grid and what it leads to."""

    logs: Tensor
    solver: GridSolver
    residuals: Tensor
    error: float


def refine(
    trials: Trials,
    solver: GridSolver,
    *,
    budget: int,
    floor: float = 0.0,
    fits: Callable[[GridSolver], bool] = lambda solver: True,
) -> GridSolver:
    """The solver on the grid that a local search from its own leads to.

    The unknowns are the logarithms of the steps relative to the last, so that the times always
    increase. The residuals of all values are linearised in them by differences, which takes one
    integration for each, and the damped least-squares step is taken if the error is lower there:
    Levenberg and Marquardt's method. Each sample's residual is weighted by the inverse of its size,
    because the error is a mean of root mean squares, not of squares.

    Args:
        trials: what the error is measured on.
        solver: where to start.
        budget: evaluations (counted for each sample) that may be spent; when another iteration
            would not fit, the search ends.
        floor: the error that is low enough, that of the reference: below it there is nothing to be
            found but the reference's own mistakes.
        fits: what a solver must fulfil, e.g. its cost on the grid.
    Returns:
        The solver with an explicit grid of times rounded to 6 decimals; as it was where nothing
        better was found, or there is nothing to choose.
    Source: Marquardt 1963; the weights: Weiszfeld 1937 (iteratively reweighted least squares).
    """
    started, placing = trials.evaluations, solver.nfe * len(trials)
    if placing > budget:
        return solver
    here = first = _place(trials, solver, _log_steps(solver), fits)
    damping = 1e-2
    while here is not None and here.error > floor and len(here.logs):
        iteration = (len(here.logs) + 1) * placing
        if trials.evaluations - started + iteration > budget:
            break
        normal, gradient = _normal_equations(trials, here)
        for _ in range(_TRIES):
            move = _damped_step(normal, gradient, damping)
            there = _place(trials, solver, here.logs + move, fits)
            if there is not None and there.error < here.error:
                damping = max(damping / 5, 1e-4)
                break
            damping = max(damping * 8, 1e-2)
        else:
            break
        ended = there.error > _ENOUGH * here.error
        here = there
        if ended:
            break
    return solver if here is None or here is first else here.solver


def _log_steps(solver: GridSolver) -> Tensor:
    """Logarithms of the steps relative to the last, [steps - 1] float64."""
    steps = [b - a for a, b in pairwise(solver.times())]
    return torch.tensor([math.log(h / steps[-1]) for h in steps[:-1]], dtype=torch.float64)


def _steps(logs: Tensor) -> Tensor:
    """The steps themselves, which sum to 1: [steps]."""
    return torch.softmax(torch.cat([logs, logs.new_zeros(1)]), 0)


def _on_grid(solver: GridSolver, steps: Tensor) -> GridSolver:
    inner = (round(t, 6) for t in steps.cumsum(0)[:-1].tolist())
    return replace(solver, grid=ExplicitGrid(values=(0.0, *inner, 1.0)))


def _place(
    trials: Trials,
    solver: GridSolver,
    logs: Tensor,
    fits: Callable[[GridSolver], bool],
) -> _Place | None:
    """What a grid leads to; None where two times are too near each other, or it does not fit."""
    steps = _steps(logs)
    if not bool(steps.min() >= _LEAST_STEP):  # also where it is not a number
        return None
    there = _on_grid(solver, steps)
    if not fits(there):
        return None
    residuals = trials.residuals(there)
    return _Place(logs, there, residuals, mean_error(residuals))


def _normal_equations(trials: Trials, here: _Place) -> tuple[Tensor, Tensor]:
    """`J^T W J` and `J^T W r` at a place, on the CPU in float64."""
    sizes = sample_errors(here.residuals)
    weights = (sizes + 1e-3 * here.error).rsqrt()[:, None]
    columns = []
    for unit in torch.eye(len(here.logs), dtype=torch.float64):
        moved = _on_grid(here.solver, _steps(here.logs + _DIFFERENCE * unit))
        change = (trials.residuals(moved) - here.residuals) / _DIFFERENCE
        columns.append((change * weights).flatten())
    jacobian = torch.stack(columns, 1)
    weighted = (here.residuals * weights).flatten()
    return (jacobian.T @ jacobian).cpu().double(), (jacobian.T @ weighted).cpu().double()


def _damped_step(normal: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """The step of Levenberg and Marquardt; no step length changes by more than a factor e."""
    scale = normal.diagonal()
    tiny = 1e-9 * scale.max().clamp(min=torch.finfo(scale.dtype).tiny)
    move: Tensor = -torch.linalg.solve(normal + torch.diag(damping * scale + tiny), gradient)
    return move / max(1.0, float(move.abs().max()))
