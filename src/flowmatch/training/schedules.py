"""Learning-rate schedules: warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from flowmatch.component import Component


@dataclass(frozen=True, kw_only=True)
class Schedule(Component, ABC):
    """A factor on the learning rate: a linear warm-up, then the subclass's curve.

    Args:
        warmup_steps: length of the warm-up in optimizer steps; the first step has
            lr / warmup_steps, not 0.
        warmup_images: the same in images (instead of `warmup_steps`), so that a recipe survives a
            change of the batch.
    """

    warmup_steps: int | None = None
    warmup_images: int | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps is not None and self.warmup_images is not None:
            raise ValueError("give warmup_steps or warmup_images, not both")
        if (self.warmup_steps or 0) < 0 or (self.warmup_images or 0) < 0:
            raise ValueError("a warm-up cannot be negative")

    def factor(self, step: int, *, total_steps: int, batch: int) -> float:
        """The learning rate's factor for the step with this (zero-based) number."""
        warmup = self.warmup_steps or (self.warmup_images or 0) / batch
        if step + 1 < warmup:
            return (step + 1) / warmup
        # 0 at the end of the warm-up, 1 at the last step
        progress = (step + 1 - warmup) / max(total_steps - warmup, 1)
        return self.curve(min(max(progress, 0.0), 1.0))

    @abstractmethod
    def curve(self, progress: float) -> float:
        """The factor after the warm-up; `progress` runs from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The full rate after the warm-up."""

    kind: Literal["constant"] = "constant"

    def curve(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class LinearDecay(Schedule):
    """A straight line from 1 to `final`, the factor at the last step."""

    final: float = 0.0
    kind: Literal["linear"] = "linear"

    def curve(self, progress: float) -> float:
        return 1 + (self.final - 1) * progress


@dataclass(frozen=True, kw_only=True)
class CosineDecay(Schedule):
    """Half a cosine from 1 to `final`.  Source: Loshchilov & Hutter 2017, "SGDR", equation 5."""

    final: float = 0.0
    kind: Literal["cosine"] = "cosine"

    def curve(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


ScheduleConfig = Annotated[Constant | LinearDecay | CosineDecay, Field(discriminator="kind")]
