"""Learning-rate schedules: a warm-up, and a curve that is constant or falls.

All lengths can be given in steps or in images. Given in images, the rate is a function of the
images seen, whatever the batch. To add a schedule, write its class and name it in `ScheduleConfig`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from flowmatch.component import Component


@dataclass(frozen=True, kw_only=True)
class Schedule(Component, ABC):
    """A factor on the learning rate: a linear warm-up times the subclass's curve.

        factor(t) = min(t / warmup, 1) curve(t)

    where t counts the steps, the present one included: the first has lr / warmup, not 0.

    Args:
        warmup_steps: length of the warm-up in optimizer steps.
        warmup_images: the same in images (instead of `warmup_steps`), so that a recipe survives a
            change of the batch. Neither of them: no warm-up.
    Raises:
        ValueError: both are given, or one is negative.
    """

    warmup_steps: int | None = None
    warmup_images: int | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps is not None and self.warmup_images is not None:
            raise ValueError("give warmup_steps or warmup_images, not both; null takes one back")
        if (self.warmup_steps or 0) < 0 or (self.warmup_images or 0) < 0:
            raise ValueError("a warm-up cannot be negative")

    def factor(self, step: int, *, total_steps: int, batch: int) -> float:
        """The learning rate's factor for the step with this (zero-based) number."""
        warmup = self.warmup(batch)
        ramp = min((step + 1) / warmup, 1.0) if warmup else 1.0
        return ramp * self.curve(step + 1, warmup=warmup, total_steps=total_steps, batch=batch)

    def warmup(self, batch: int) -> float:
        """The length of the warm-up in optimizer steps, not rounded."""
        return _in_steps(self.warmup_steps, self.warmup_images, batch)

    @abstractmethod
    def curve(self, t: int, *, warmup: float, total_steps: int, batch: int) -> float:
        """The factor besides the warm-up's at step t = 1 .. `total_steps`."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The full rate after the warm-up."""

    kind: Literal["constant"] = "constant"

    def curve(self, t: int, *, warmup: float, total_steps: int, batch: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Decay(Schedule):
    """From 1 at the end of the warm-up to `final`, the factor at the last step.

        curve(t) = final + (1 - final) shape(p),   p = (t - warmup) / (total - warmup)

    Args:
        final: in [0, 1].
    Raises:
        ValueError: it is not.
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.final <= 1:
            raise ValueError(f"final is a factor in [0, 1], got {self.final}")

    def curve(self, t: int, *, warmup: float, total_steps: int, batch: int) -> float:
        progress = (t - warmup) / max(total_steps - warmup, 1)
        return self.final + (1 - self.final) * self.shape(min(max(progress, 0.0), 1.0))

    @abstractmethod
    def shape(self, progress: float) -> float:
        """From 1 at progress 0 to 0 at progress 1."""


@dataclass(frozen=True, kw_only=True)
class LinearDecay(Decay):
    """A straight line: shape(p) = 1 - p."""

    kind: Literal["linear"] = "linear"

    def shape(self, progress: float) -> float:
        return 1 - progress


@dataclass(frozen=True, kw_only=True)
class CosineDecay(Decay):
    """Half a cosine: shape(p) = (1 + cos(pi p)) / 2.

    Source: Loshchilov & Hutter 2017, "SGDR", equation 5.
    """

    kind: Literal["cosine"] = "cosine"

    def shape(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    """Constant up to a reference, then falling with the root of the time; it needs no end.

        curve(t) = 1 / sqrt(max(t / reference, 1))

    Meant for trainings whose length is open: any moment of it is like any other, and averages of
    the weights (`ema`) take the part of a decay to zero.

    Args:
        reference_steps: where the fall begins, in optimizer steps; at four times this the factor
            is 1/2.
        reference_images: the same in images; exactly one of them.
    Raises:
        ValueError: not exactly one is given, or it is not positive.
    Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models"
        (EDM2), appendix B.
    """

    reference_steps: int | None = None
    reference_images: int | None = None
    kind: Literal["inverse_sqrt"] = "inverse_sqrt"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in (self.reference_steps, self.reference_images) if n is not None]
        if len(given) != 1:
            raise ValueError(
                "give reference_steps or reference_images of inverse_sqrt, exactly one of them"
            )
        if given[0] < 1:
            raise ValueError(f"the reference of inverse_sqrt must be at least 1, got {given[0]}")

    def curve(self, t: int, *, warmup: float, total_steps: int, batch: int) -> float:
        reference = _in_steps(self.reference_steps, self.reference_images, batch)
        return 1 / math.sqrt(max(t / reference, 1.0))


ScheduleConfig = Annotated[
    Constant | LinearDecay | CosineDecay | InverseSqrt, Field(discriminator="kind")
]


def _in_steps(steps: int | None, images: int | None, batch: int) -> float:
    """A length in optimizer steps, not rounded; 0 if it is given in neither unit."""
    return images / batch if images is not None else float(steps or 0)
