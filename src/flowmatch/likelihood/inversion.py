"""From data to noise and back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from flowmatch.flow import Cond, Field
from flowmatch.likelihood.plain_ode import require_plain_ode
from flowmatch.sampling import check_times, sample
from flowmatch.solvers import Dopri5, Solver
from flowmatch.tensors import mean_flat

_ADAPTIVE = Dopri5()


class Inversion(NamedTuple):
    """The latent of each sample, what it becomes again, and how far that is off."""

    x0: Tensor
    """The source sample that flows into x1, [B, *D]."""
    x1_again: Tensor
    """Where the solver leads from `x0`, [B, *D]."""
    error: Tensor
    """Root mean square of `x1_again - x1` over a sample's values, [B]."""


def invert(
    field: Field,
    x1: Tensor,
    solver: Solver = _ADAPTIVE,
    cond: Cond | Tensor | None = None,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
) -> Inversion:
    """Integrate `field` from data to noise, and from there to data again.

    The way back is the one that `sample` takes, with the solver's safe end. Without gradients.

    Args:
        field: any callable `(x [B, *D], t [B], cond) -> v [B, *D]`, e.g. a `Flow`.
        x1: data at time `t1`, [B, *D].
        solver: of an ordinary differential equation that knows the field alone.
        cond: None, a mapping from names to tensors, or a bare label tensor [B].
        t0: time of the source.
        t1: time of the data; see `log_prob` for when to end before 1.
    Returns:
        Latents, reconstructions, and the error of the round trip in units of x1.
    Raises:
        ValueError: the solver is none of plain ordinary differential equations.
    Source: Chen et al. 2018, "Neural Ordinary Differential Equations", section 4.
    """
    require_plain_ode(solver)
    check_times(t0, t1, forward=True)
    x0 = sample(field, x1, solver, cond, t0=t1, t1=t0)
    again = sample(field, x0, solver, cond, t0=t0, t1=t1)
    return Inversion(x0, again, mean_flat((again - x1) ** 2).sqrt())
