"""Autoguidance: a model guided away from a weaker version of itself."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from flowmatch.flow import Cond, Field, flow_inside
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
class AutoGuided:
    """`v = v_weak + scale * (v - v_weak)`, with or without a condition: both fields see the same.

    The weak field makes the errors of the main one, only larger: an earlier checkpoint, a shorter
    average of the weights, a smaller network, in the best case of the same training.

    Args:
        field: the main field.
        weak: the field to move away from.
        scale: guidance scale, or a function of time [B] -> [B]; 1 is off, and one evaluation.
        interval: the times `lo <= t <= hi` that are guided, each sample on its own clock.
    Raises:
        ValueError: an option is out of its range, or the two are flows of different data.
    Source: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself".
    """

    field: Field
    weak: Field
    scale: Scale
    _: KW_ONLY
    interval: Interval = ALWAYS

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        check_weak(self.field, self.weak)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        scale = strength(self.scale, self.interval, x, t)
        v = self.field(x, t, cond)
        return v if scale is None else extrapolated(self.weak(x, t, cond), v, scale)


def check_weak(field: Field, weak: Field) -> None:
    """Refuse a weak flow that cannot guide this one; of foreign fields nothing is known.

    Raises:
        ValueError: they differ in shape, number of classes or path.
    """
    main, other = flow_inside(field), flow_inside(weak)
    if main is None or other is None:
        return
    for name, ours, theirs in (
        ("shape", main.shape, other.shape),
        ("number of classes", main.num_classes, other.num_classes),
        ("path", main.path, other.path),
    ):
        if ours != theirs and not (name == "shape" and None in (ours, theirs)):
            raise ValueError(
                f"the weak model's {name} is {theirs}, but the guided one's is {ours}; give a"
                " weaker model of the same data, e.g. an earlier checkpoint"
            )
