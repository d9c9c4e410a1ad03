"""Which solvers can carry a density, or come back the way they went."""

from __future__ import annotations

from flowmatch.solvers import Solver


def require_plain_ode(solver: Solver) -> None:
    """Refuse a solver that adds noise, or that steps by the path rather than by the field alone.

    The state of a density holds log-density columns beside x, which no path knows of.

    Raises:
        ValueError: it is such a solver.
    """
    name = getattr(solver, "kind", type(solver).__name__)
    for attribute, why in (("stochastic", "adds noise"), ("needs_path", "steps along the path")):
        if getattr(solver, attribute, False):
            raise ValueError(
                f"the solver {name} {why}, so it cannot follow data back to its noise or carry"
                " its density; use dopri5, or heun or rk4 with many steps"
            )
