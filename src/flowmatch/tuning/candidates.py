"""Candidates: the solvers and families of grids that fit a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

from flowmatch.paths import Linear
from flowmatch.solvers import (
    DDIM,
    AnySolver,
    EDMGrid,
    GridConfig,
    GridSolver,
    LogitNormalGrid,
    Schedule,
    ShiftedGrid,
    UniformGrid,
    by_name,
)

Cost = Callable[[GridSolver], int]
"""Network evaluations of one integration for one sample."""

GRIDS: tuple[GridConfig, ...] = (
    UniformGrid(),
    *(ShiftedGrid(shift=s) for s in (0.5, 0.7, 1.5, 2.0, 3.0, 4.0)),
    EDMGrid(),
    *(
        EDMGrid(rho=rho, sigma_min=low, sigma_max=20.0)
        for rho in (3.0, 5.0, 7.0, 10.0)
        for low in (0.02, 0.1)  # the published 0.002 spends a step of few on next to nothing
    ),
    *(
        LogitNormalGrid(mean=mean, std=std)
        for mean in (-1.0, -0.5, 0.0, 0.5, 1.0)
        for std in (0.8, 1.2, 2.0)
    ),
)
"""The grids that are tried with every solver, the plainest first."""


def field_calls(solver: GridSolver) -> int:
    """The cost where every field call is one network evaluation."""
    return solver.nfe


def candidates(
    nfe: int,
    *,
    path: Schedule | None = None,
    kinds: Sequence[str] | None = None,
    cost: Cost = field_calls,
) -> list[GridSolver]:
    """Every suitable solver on every grid, each with as many steps as the budget allows.

    Suitable is what follows the trajectory on a fixed grid. Stochastic solvers do not follow it,
    adaptive ones choose their own evaluations, and on a linear path ddim is euler.

    Args:
        nfe: the budget in network evaluations a sample, >= 1.
        path: the path of the flow; None leaves out the solvers that need it.
        kinds: the solvers to try, by name; None is all that are suitable.
        cost: what a solver costs.
    Raises:
        ValueError: the budget is below 1 or too small for all of them, or a solver named in
            `kinds` does not exist or is not suitable.
    """
    if nfe < 1:
        raise ValueError(f"a budget is at least 1 evaluation, got {nfe}")
    chosen = _suitable(path) if kinds is None else [_named(kind, path) for kind in kinds]
    found = [
        solver
        for kind in dict.fromkeys(chosen)
        for grid in GRIDS
        if (solver := largest(kind, grid, nfe, cost)) is not None
    ]
    if not found:
        names = ", ".join(dict.fromkeys(kinds or ()))
        raise ValueError(
            f"a budget of {nfe} is too small for one step of {names or 'any solver'}; raise it"
        )
    return found


def _suitable(path: Schedule | None) -> list[type[GridSolver]]:
    known: list[type[AnySolver]] = list(get_args(AnySolver))
    on_grids = [kind for kind in known if issubclass(kind, GridSolver) and not kind.stochastic]
    twin = DDIM if isinstance(path, Linear) else None
    return [k for k in on_grids if k is not twin and (path is not None or not k.needs_path)]


def _named(name: str, path: Schedule | None) -> type[GridSolver]:
    kind = by_name(name)
    if not issubclass(kind, GridSolver):
        raise ValueError(f"{name} chooses its own steps, so it has no grid to tune; leave it out")
    if kind.stochastic:
        raise ValueError(
            f"{name} adds noise, so it follows no trajectory to be near to; leave it out"
        )
    if kind.needs_path and path is None:
        raise ValueError(f"{name} needs the path of the flow; pass path=..., or leave it out")
    return kind


def largest(kind: type[GridSolver], grid: GridConfig, nfe: int, cost: Cost) -> GridSolver | None:
    """The solver with the most steps that the budget allows; None if not even one step fits."""
    for steps in range((nfe - kind.extra) // kind.stages, 0, -1):
        if steps == 1 and grid != UniformGrid():
            break  # every grid of one step is the same
        solver = kind(steps=steps, grid=grid)
        if cost(solver) <= nfe:
            return solver
    return None
