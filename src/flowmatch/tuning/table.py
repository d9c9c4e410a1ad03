"""The table of a search: Markdown, so that it can be pasted where it is needed."""

from __future__ import annotations

from flowmatch.markdown import table
from flowmatch.solvers import ExplicitGrid, GridSolver, describe
from flowmatch.tuning.tune import Tried, Tuned


def as_table(found: Tuned) -> str:
    """The choice, the best of other solvers and the baselines, with what must be known of them."""
    head = ["", "solver", "grid", "steps", "NFE", "error", "compared", "fitted"]
    head += [f"of {name}" for name in found.baselines]
    named = [("chosen", found.best), *(("", t) for t in found.others)]
    named += [("uniform", t) for t in found.baselines.values()]
    rows = [head, *(_cells(label, t, found) for label, t in named)]
    reference = describe(found.reference)
    return "\n".join(
        [
            table(rows),
            "",
            "error: RMS distance from the ends of the model's own trajectories, mean over"
            f" {found.held_out:,} samples that nothing was decided by; compared: over"
            f" {found.samples:,} that the choice was made by; fitted: over {found.samples:,} that"
            " times were fitted to. Stochastic solvers, which follow no trajectory, and adaptive"
            " ones, which choose their own steps, are left out. Near is not yet good: with"
            " --judge samples the samples decide.",
            f"The trajectories: {reference['kind']}:{reference['steps']} on grid"
            f" {found.reference.grid.name}, off by about {found.reference_error:.2g}. Times of the"
            f" choice: {', '.join(f'{t:.4g}' for t in found.solver.times())}.",
            f"{found.evaluations:,} field calls for single samples in {found.seconds:,.1f} s.",
        ]
    )


def _cells(label: str, tried: Tried, found: Tuned) -> list[str]:
    kind = describe(tried.solver)["kind"]
    numbers = [f"{e:.4g}" for e in (tried.error, tried.compared, tried.fitted)]
    shares = [f"{tried.error / base.error:.2f}x" for base in found.baselines.values()]
    return [
        label,
        kind,
        grid_title(tried.solver),
        str(tried.solver.steps),
        str(tried.nfe),
        *numbers,
        *shares,
    ]


def grid_title(solver: GridSolver) -> str:
    """The grid of a solver in a table of what was tried, where times of its own were fitted."""
    return "fitted" if isinstance(solver.grid, ExplicitGrid) else solver.grid.name
