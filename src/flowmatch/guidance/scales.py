"""How strongly to guide: a scale, a schedule over time, an interval of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.tensors import expand_like

Scale = float | Callable[[Tensor], Tensor]
"""A guidance scale: one number, or a function of time, [B] -> [B]. 1 is off."""

Interval = tuple[float, float]
"""The times `lo <= t <= hi` that are guided."""

ALWAYS: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class LinearScale:
    """`scale(t) = start + (end - start) t`.

    Args:
        start: scale at t=0, the noise.
        end: scale at t=1, the data.
    Source: the linear scheduler of Wang et al. 2024, "Analysis of Classifier-Free Guidance Weight
    Schedulers", who find rising ones best: `start=1`, and `end=2s-1` to guide as much as `s` does.
    """

    start: float
    end: float

    def __call__(self, t: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * t


@dataclass(frozen=True)
class CosineScale:
    """`scale(t) = start + (end - start) (1 - cos(pi t)) / 2`: slow at both ends.

    Args:
        start: scale at t=0, the noise.
        end: scale at t=1, the data.
    Source: the cosine scheduler of Wang et al. 2024; see `LinearScale`.
    """

    start: float
    end: float

    def __call__(self, t: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * (1 - torch.cos(math.pi * t)) / 2


def inside(interval: Interval, t: Tensor) -> Tensor:
    """Which times [B] are guided: [B] bool."""
    return (t >= interval[0]) & (t <= interval[1])


def strength(scale: Scale, interval: Interval, x: Tensor, t: Tensor) -> float | Tensor | None:
    """The scale of each sample, 1 where its time is outside the interval.

    Only an interval makes the host wait for the device: whether the second evaluation can be left
    out is a question about the values of `t`, and a wait costs far less than an evaluation.

    Args:
        scale, interval: as of a guided field.
        x: the points [B, *D] that the scale will multiply.
        t: their times [B].
    Returns:
        A number or a tensor that broadcasts against `x`; None if no sample of the batch is guided.
    """
    if scale == 1:
        return None
    if interval == ALWAYS:
        return expand_like(scale(t), x).to(x.dtype) if callable(scale) else scale
    guided = inside(interval, t)
    if not bool(guided.any()):
        return None
    values = scale(t) if callable(scale) else torch.full_like(t, scale)
    return expand_like(torch.where(guided, values, 1), x).to(x.dtype)


def extrapolated(start: Tensor, end: Tensor, scale: float | Tensor) -> Tensor:
    """`start + scale * (end - start)`, exact at scales 0 and 1, in the dtype of the two."""
    return torch.lerp(start, end, scale.to(end.dtype) if isinstance(scale, Tensor) else scale)


def check_scale(scale: Scale) -> None:
    """Refuse a scale that is no finite number (a schedule is taken as it is)."""
    if not callable(scale) and not math.isfinite(scale):
        raise ValueError(f"the guidance scale must be a finite number, got {scale}")


def check_interval(interval: Interval) -> None:
    """Refuse an interval that is not within [0, 1], or is empty."""
    lo, hi = interval
    if not 0 <= lo < hi <= 1:
        raise ValueError(
            f"the guidance interval must be two times with 0 <= lo < hi <= 1, got {lo} and {hi}"
        )
