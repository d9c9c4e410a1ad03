"""Counting network evaluations as a field around a field."""

from __future__ import annotations

from torch import Tensor

from flowmatch.flow import Cond, Field


class CountNFE:
    """Passes every call on and counts it: `nfe` is the number of evaluations per sample.

    Put it next to the network (`Guided(CountNFE(flow), 1.5)`), so that guidance counts twice.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        self.nfe += 1
        return self.field(x, t, cond)
