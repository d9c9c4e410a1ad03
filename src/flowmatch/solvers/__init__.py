"""Solvers: integrate `dx/dt = f(x, t)`; one small file each."""

import difflib
from dataclasses import asdict
from typing import Annotated, Any, get_args

from pydantic import Field

from flowmatch.solvers.adams_bashforth import AB2 as AB2
from flowmatch.solvers.adams_bashforth import AB3 as AB3
from flowmatch.solvers.adaptive import Adaptive as Adaptive
from flowmatch.solvers.ancestral import Ancestral as Ancestral
from flowmatch.solvers.bosh3 import Bosh3 as Bosh3
from flowmatch.solvers.churn import Churn as Churn
from flowmatch.solvers.ddim import DDIM as DDIM
from flowmatch.solvers.deis import DEIS as DEIS
from flowmatch.solvers.dopri5 import Dopri5 as Dopri5
from flowmatch.solvers.dopri8 import Dopri8 as Dopri8
from flowmatch.solvers.dpm_solver import DPMpp2M as DPMpp2M
from flowmatch.solvers.dpm_solver import DPMpp3M as DPMpp3M
from flowmatch.solvers.euler import Euler as Euler
from flowmatch.solvers.euler_maruyama import EulerMaruyama as EulerMaruyama
from flowmatch.solvers.grids import EDMGrid as EDMGrid
from flowmatch.solvers.grids import ExplicitGrid as ExplicitGrid
from flowmatch.solvers.grids import Grid as Grid
from flowmatch.solvers.grids import GridConfig as GridConfig
from flowmatch.solvers.grids import LogitNormalGrid as LogitNormalGrid
from flowmatch.solvers.grids import ShiftedGrid as ShiftedGrid
from flowmatch.solvers.grids import UniformGrid as UniformGrid
from flowmatch.solvers.grids import parse_grid as parse_grid
from flowmatch.solvers.heun import Heun as Heun
from flowmatch.solvers.heun3 import Heun3 as Heun3
from flowmatch.solvers.midpoint import Midpoint as Midpoint
from flowmatch.solvers.on_path import OnPath as OnPath
from flowmatch.solvers.on_path import Schedule as Schedule
from flowmatch.solvers.on_path import StepNoise as StepNoise
from flowmatch.solvers.ralston import Ralston as Ralston
from flowmatch.solvers.rk4 import RK4 as RK4
from flowmatch.solvers.solver import FixedStep as FixedStep
from flowmatch.solvers.solver import GridSolver as GridSolver
from flowmatch.solvers.solver import Solver as Solver
from flowmatch.solvers.solver import Stalled as Stalled
from flowmatch.solvers.solver import TimeField as TimeField
from flowmatch.solvers.stochastic_heun import StochasticHeun as StochasticHeun
from flowmatch.solvers.unipc import UniPC as UniPC

AnySolver = (
    (Euler | Midpoint | Heun | Ralston | Heun3 | RK4)
    | (Bosh3 | Dopri5 | Dopri8)
    | (AB2 | AB3)
    | (DDIM | DPMpp2M | DPMpp3M | UniPC | DEIS)
    | (EulerMaruyama | StochasticHeun | Ancestral | Churn)
)
SolverConfig = Annotated[AnySolver, Field(discriminator="kind")]


def by_name(name: str) -> type[AnySolver]:
    """The solver class of a kind, e.g. "heun".

    Raises:
        ValueError: there is no such solver; lists those that exist.
    """
    known = {solver.kind: solver for solver in get_args(AnySolver)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no solver {name!r}{hint or '.'} Known: {', '.join(known)}")
    return known[name]  # type: ignore[no-any-return]


def parse(spec: str) -> list[AnySolver]:
    """The solvers that a short text names: "heun:5,50" for two step counts, or "dopri5".

    Raises:
        ValueError: it cannot be read, or there is no such solver.
    """
    name, _, counts = spec.partition(":")
    solver = by_name(name)
    if not issubclass(solver, GridSolver):
        if counts:
            raise ValueError(f"{name} chooses its own steps; write {name} alone, not {spec!r}")
        return [solver()]
    steps = [int(n) if n.isdecimal() else 0 for n in counts.split(",")]
    if min(steps) < 1:
        raise ValueError(
            f"cannot read the solver {spec!r}; write its name and step counts of at least 1, e.g."
            f" {name}:10,100"
        )
    return [solver(steps=n) for n in dict.fromkeys(steps)]


def describe(solver: Solver) -> dict[str, Any]:
    """A solver as plain values for a record; a uniform grid goes without saying."""
    facts = asdict(solver)
    if facts.get("grid") == {"kind": "uniform"}:
        del facts["grid"]
    return facts
