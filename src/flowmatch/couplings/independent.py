"""The independent coupling: any source sample meets any data sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowmatch.component import Component


@dataclass(frozen=True)
class Independent(Component):
    """Pairs are left as they were drawn.

    A coupling takes the drawn source `x0` [B, *D] and data `x1` [B, *D] and returns the source
    samples rearranged, so that row i of the result belongs to row i of `x1` (and its label).

    Source: I-CFM of Tong et al. 2024, "Improving and generalizing flow-based generative models".
    """

    kind: Literal["independent"] = "independent"

    def __call__(self, x0: Tensor, x1: Tensor) -> Tensor:
        return x0
