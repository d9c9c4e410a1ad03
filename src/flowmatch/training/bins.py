"""The ten equal parts of [0, 1] in which numbers against t are told."""

from __future__ import annotations

from torch import Tensor

BINS = 10


def bin_of(t: Tensor) -> Tensor:
    """The part [k/10, (k+1)/10) that each time lies in; the last holds 1 too.  [B] -> [B] int64"""
    return (t * BINS).long().clamp_(0, BINS - 1)


def centres(bins: int = BINS) -> list[float]:
    """The middle of each part: 0.05, 0.15, ..., 0.95."""
    return [(k + 0.5) / bins for k in range(bins)]
