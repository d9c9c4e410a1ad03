"""A field under several conditions at the same points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from flowmatch.flow import Cond, Field


def under(field: Field, x: Tensor, t: Tensor, conds: Sequence[Cond | None]) -> list[Tensor]:
    """The velocities at the same points under several conditions.

    A field with a method `under` (a `Flow`, or what wraps one and passes it on) computes them as it
    likes best, in one network call where it can; any other field is called once for each.

    Args:
        field: `(x [B, *D], t [B], cond) -> v [B, *D]`.
        x: points [B, *D].
        t: their times [B].
        conds: conditions; None is the null condition.
    Returns:
        As many velocities [B, *D], in the order of `conds`.
    """
    together: Callable[..., list[Tensor]] | None = getattr(field, "under", None)
    if together is not None:
        return together(x, t, conds)
    return [field(x, t, cond) for cond in conds]


def required(cond: Cond | None) -> Cond:
    """The condition, refused where there is none to guide towards."""
    if cond is None:
        raise ValueError("guidance needs a condition to guide towards; pass cond, e.g. labels")
    return cond
