"""Counting network evaluations as a field around a field."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowmatch.flow import Cond, Field
from flowmatch.guidance.conditions import under


class CountNFE:
    """Passes every call on and counts it: `nfe` is the number of evaluations per sample.

    Put it next to the network (`Guided(CountNFE(flow), 1.5)`), so that guidance counts twice,
    whether or not the two are computed in one network call.

    Args:
        field: what is counted.
        into: another counter, whose `nfe` counts these calls instead of this one's: the sum over
            two networks.
    """

    def __init__(self, field: Field, *, into: CountNFE | None = None) -> None:
        self.field = field
        self.nfe = 0
        self._counter = into or self

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        self._counter.nfe += 1
        return self.field(x, t, cond)

    def under(self, x: Tensor, t: Tensor, conds: Sequence[Cond | None]) -> list[Tensor]:
        """The velocities under several conditions; each counts as one evaluation."""
        self._counter.nfe += len(conds)
        return under(self.field, x, t, conds)
