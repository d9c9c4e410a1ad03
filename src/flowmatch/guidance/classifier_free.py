"""Classifier-free guidance as a field around a field."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowmatch.flow import Cond, Field


@dataclass(frozen=True)
class Guided:
    """`v = v_null + scale * (v_cond - v_null)`: two field calls, or one where `scale` is 1.

    Args:
        field: a conditional field that takes `cond=None` as the null condition.
        scale: guidance scale; 1 is off, 0 is unconditional.
    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (their w is `scale - 1`); on
    velocities: Zheng et al. 2023, "Guided Flows", equation 6.
    """

    field: Field
    scale: float

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        if cond is None:
            raise ValueError("guidance needs a condition to guide towards; pass cond, e.g. labels")
        v_cond = self.field(x, t, cond)
        if self.scale == 1:
            return v_cond
        v_null = self.field(x, t, None)
        return v_null + self.scale * (v_cond - v_null)
