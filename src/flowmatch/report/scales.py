"""Axes: where a value lies on a chart, and which round numbers stand beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log"]


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Args:
        label: the quantity and its unit.
        kind: "linear" or "log"; on a log axis values that are not positive are left out.
        bounds: ends of the axis; None fits them to the data.
        from_zero: start at zero, so that lengths can be compared.
    """

    label: str
    kind: Kind = "linear"
    bounds: tuple[float, float] | None = None
    from_zero: bool = False

    def holds(self, value: float | None) -> bool:
        """Whether a value can be drawn."""
        return value is not None and math.isfinite(value) and (self.kind == "linear" or value > 0)


@dataclass(frozen=True)
class Scale:
    """A map from values in [low, high] to coordinates from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    kind: Kind

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.kind == "log":
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round numbers inside the scale."""
        if self.kind == "log" and self.high / self.low > 5:
            return _log_ticks(self.low, self.high, count)
        return _linear_ticks(self.low, self.high, count)


def suited(label: str, values: Sequence[float]) -> Axis:
    """A log axis for positive values that differ tenfold, else a linear one."""
    if values and min(values) > 0 and max(values) > 10 * min(values):
        return Axis(f"{label} (log)", "log")
    return Axis(label)


def limits(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis over values that it holds: a little wider than the data."""
    if axis.bounds is not None:
        return axis.bounds
    low, high = min(values, default=1.0), max(values, default=1.0)
    if axis.kind == "log":
        low, high = (low / 1.5, high * 1.5) if low == high else (low, high)
        margin = (high / low) ** 0.05
        return low / margin, high * margin
    if low == high and not (axis.from_zero and low > 0):
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    margin = 0.05 * ((high - low) or high)
    near_zero = 0 <= low < 0.4 * high  # an axis that nearly starts at zero may as well
    start = 0.0 if near_zero or (axis.from_zero and low >= 0) else low - margin
    return start, high + margin


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) <= count + 1:
            return ticks
    return ticks[:: math.ceil(len(ticks) / count)]
