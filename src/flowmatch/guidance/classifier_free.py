"""Classifier-free guidance as a field around a field."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from flowmatch.flow import Cond, Field
from flowmatch.guidance.conditions import required, under
from flowmatch.guidance.scales import (
    ALWAYS,
    Interval,
    Scale,
    check_interval,
    check_scale,
    extrapolated,
    strength,
)


@dataclass(frozen=True)
class Guided:
    """`v = v_null + scale * (v_cond - v_null)`: two evaluations, or one where nothing is guided.

    Args:
        field: a conditional field that takes `cond=None` as the null condition.
        scale: guidance scale, or a function of time [B] -> [B]; 1 is off, 0 is unconditional.
        interval: the times `lo <= t <= hi` that are guided, each sample on its own clock. One
            evaluation is enough where the whole batch is outside.
    Raises:
        ValueError: the scale is not finite, or not `0 <= lo < hi <= 1`; a call without a condition.
    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (their w is `scale - 1`); on
    velocities: Zheng et al. 2023, "Guided Flows", equation 6; the interval: Kynkaanniemi et al.
    2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality".
    """

    field: Field
    scale: Scale
    _: KW_ONLY
    interval: Interval = ALWAYS

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        cond = required(cond)
        scale = strength(self.scale, self.interval, x, t)
        if scale is None:
            return self.field(x, t, cond)
        v_cond, v_null = under(self.field, x, t, [cond, None])
        return extrapolated(v_null, v_cond, scale)
