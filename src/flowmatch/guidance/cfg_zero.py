"""CFG-Zero*: guidance from the best multiple of the unconditional velocity."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from flowmatch.flow import Cond, Field
from flowmatch.guidance.conditions import required, under
from flowmatch.guidance.projection import projected
from flowmatch.guidance.scales import (
    ALWAYS,
    Interval,
    Scale,
    check_interval,
    check_scale,
    extrapolated,
    strength,
)
from flowmatch.tensors import expand_like


@dataclass(frozen=True)
class CFGZero:
    """Classifier-free guidance away from a rescaled null velocity, at rest at first.

        v = s* v_null + scale * (v_cond - s* v_null),   s* = <v_cond, v_null> / |v_null|^2
        v = 0   where t < zero_until

    `s*` is the multiple of `v_null` that is nearest to `v_cond`, for each sample. At rest, a
    sample costs no evaluation unless another of its batch is already moving.

    Args:
        field: a conditional field that takes `cond=None` as the null condition.
        scale: guidance scale, or a function of time [B] -> [B]; 1 leaves only the rest at first.
        zero_until: the time before which nothing moves, in [0, 1); 0 leaves this out. It acts on
            evaluations: any value below `1/n` stops just the first of n Euler steps. The paper
            rests for the first step, or for 4 % of many.
        interval: the times `lo <= t <= hi` that are guided; outside, `v = v_cond`.
    Raises:
        ValueError: an option is out of its range; a call without a condition.
    Source: Fan et al. 2025, "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching
    Models" (optimized scale and zero-init).
    """

    field: Field
    scale: Scale
    zero_until: float = 0.04
    _: KW_ONLY
    interval: Interval = ALWAYS

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        check_zero_until(self.zero_until)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        cond = required(cond)
        if self.zero_until == 0:
            return self._moving(x, t, cond)
        resting = t < self.zero_until
        if bool(resting.all()):
            return torch.zeros_like(x)
        return self._moving(x, t, cond).masked_fill(expand_like(resting, x), 0)

    def _moving(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        scale = strength(self.scale, self.interval, x, t)
        if scale is None:
            return self.field(x, t, cond)
        v_cond, v_null = under(self.field, x, t, [cond, None])
        return extrapolated(projected(v_cond, v_null), v_cond, scale)


def check_zero_until(zero_until: float) -> None:
    """Refuse a time of rest that is not in [0, 1)."""
    if not 0 <= zero_until < 1:
        raise ValueError(f"zero_until is a time in [0, 1), got {zero_until}")
