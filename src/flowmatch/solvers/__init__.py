"""Solvers: integrate `dx/dt = f(x, t)`; one small file each."""

import difflib
from typing import Annotated, get_args

from pydantic import Field

from flowmatch.solvers.dopri5 import Dopri5 as Dopri5
from flowmatch.solvers.euler import Euler as Euler
from flowmatch.solvers.heun import Heun as Heun
from flowmatch.solvers.midpoint import Midpoint as Midpoint
from flowmatch.solvers.rk4 import RK4 as RK4
from flowmatch.solvers.solver import FixedStep as FixedStep
from flowmatch.solvers.solver import Solver as Solver
from flowmatch.solvers.solver import Stalled as Stalled
from flowmatch.solvers.solver import TimeField as TimeField

SolverConfig = Annotated[Euler | Midpoint | Heun | RK4 | Dopri5, Field(discriminator="kind")]


def by_name(name: str) -> type[Euler | Midpoint | Heun | RK4 | Dopri5]:
    """The solver class of a kind, e.g. "heun".

    Raises:
        ValueError: there is no such solver; lists those that exist.
    """
    known = {solver.kind: solver for solver in get_args(get_args(SolverConfig)[0])}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no solver {name!r}{hint} Known: {', '.join(known)}")
    return known[name]  # type: ignore[no-any-return]


def parse(spec: str) -> list[Solver]:
    """The solvers that a short text names: "heun:5,50" for two step counts, or "dopri5".

    Raises:
        ValueError: it cannot be read, or there is no such solver.
    """
    name, _, counts = spec.partition(":")
    solver = by_name(name)
    if issubclass(solver, Dopri5):
        if counts:
            raise ValueError(f"{name} chooses its own steps; write {name} alone, not {spec!r}")
        return [solver()]
    steps = [int(n) if n.isdecimal() else 0 for n in counts.split(",")]
    if min(steps) < 1:
        raise ValueError(
            f"cannot read the solver {spec!r}; write its name and step counts, e.g. {name}:10,100"
        )
    return [solver(steps=n) for n in dict.fromkeys(steps)]
