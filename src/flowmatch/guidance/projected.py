"""Adaptive projected guidance: guidance that does not oversaturate."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from flowmatch.flow import Cond, Field
from flowmatch.guidance.conditions import required, under
from flowmatch.guidance.momentum import Momentum
from flowmatch.guidance.projection import projected
from flowmatch.guidance.scales import (
    ALWAYS,
    Interval,
    Scale,
    check_interval,
    check_scale,
    inside,
    strength,
)
from flowmatch.paths import AffinePath
from flowmatch.tensors import expand_like


@dataclass(frozen=True)
class APG:
    """Classifier-free guidance without the part that makes colours too strong.

    With D the prediction of x1 that a velocity implies (`path.convert`), at evaluation k:

        d_k = D_cond - D_null + momentum * d_(k-1)
        d   = d_k min(1, norm_threshold / |d_k|)
        D   = D_cond + (scale - 1) (d_orthogonal + eta d_parallel)

    where d is split with respect to D_cond. `eta=1` alone is plain guidance. Where a velocity does
    not determine x1 (where nothing moves, e.g. at t=0 of a polynomial path, or where the path is
    infinitely fast), a sample is guided plainly; at t=1, where every velocity implies the same x1,
    without momentum.

    Momentum makes the field depend on the evaluations before. It begins anew for a trajectory that
    starts at an earlier time than the last evaluation, or has another batch shape; so sample one
    batch after the other, not two by turns. Use it with a fixed-step solver that only goes forward:
    an adaptive one rejects steps and tries again, and so sees a field that is no function of x and
    t; one that goes back in time to add noise clears the sum at each step.

    Args:
        field: a conditional field that takes `cond=None` as the null condition.
        scale: guidance scale, or a function of time [B] -> [B]; 1 is off.
        path: the path that the field was trained on.
        eta: weight of the part parallel to D_cond.
        norm_threshold: the largest norm of `d` over a whole sample, > 0; None sets no limit. A
            sensible one grows with the root of the number of values.
        momentum: weight of the earlier differences, in (-1, 1); negative ones are of use.
        interval: the times `lo <= t <= hi` that are guided; outside, `v = v_cond`.
    Raises:
        ValueError: an option is out of its range; a call without a condition.
    Source: Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales in
    Diffusion Models" (orthogonal projection, rescaling, reverse momentum, in that paper's order).
    """

    field: Field
    scale: Scale
    path: AffinePath
    _: KW_ONLY
    eta: float = 0.0
    norm_threshold: float | None = None
    momentum: float = 0.0
    interval: Interval = ALWAYS
    _sum: Momentum = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        check_projection(self.eta, self.norm_threshold, self.momentum)
        object.__setattr__(self, "_sum", Momentum(self.momentum))

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        cond = required(cond)
        scale = strength(self.scale, self.interval, x, t)
        if scale is None:
            return self.field(x, t, cond)
        v_cond, v_null = under(self.field, x, t, [cond, None])
        return v_cond + (scale - 1) * self._update(v_cond, v_cond - v_null, x, t)

    def _update(self, v_cond: Tensor, difference: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """What the scale multiplies, as a velocity: [B, *D].

        D is affine in v with a slope that depends on t alone, and vanishes at t=1. So differences
        stay velocities, and only their sizes are measured as those of D: nothing is converted back.
        """
        d_cond = self.path.convert(v_cond, x, t, source="velocity", to="x1")
        slope = self.path.error_scale(t, source="velocity", to="x1").to(x.dtype)
        known = slope.isfinite() & d_cond.flatten(1).isfinite().all(1)
        slope, usable = expand_like(slope, x), expand_like(known, x)
        update = difference
        if self.momentum != 0:
            counts = usable & expand_like(inside(self.interval, t), x)
            total = self._sum.add(torch.where(counts, slope * difference, 0), t)
            update = torch.where(usable & (slope > 0), total / slope, difference)
        if self.norm_threshold is not None:
            norm = slope * expand_like(torch.linalg.vector_norm(update.flatten(1), dim=1), x)
            update = update * (self.norm_threshold / norm).clamp(max=1)
        update = update - (1 - self.eta) * projected(update, d_cond)
        return torch.where(usable, update, difference)


def check_projection(eta: float, norm_threshold: float | None, momentum: float) -> None:
    """Refuse options that the method cannot use."""
    if not math.isfinite(eta):
        raise ValueError(f"eta must be a finite number, got {eta}")
    if norm_threshold is not None and not 0 < norm_threshold < math.inf:
        raise ValueError(
            f"norm_threshold must be positive and finite, got {norm_threshold}; leave it out for no"
            " limit"
        )
    if not -1 < momentum < 1:
        raise ValueError(f"momentum must be in (-1, 1), got {momentum}")
