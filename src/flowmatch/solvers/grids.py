"""Time grids: where between 0 and 1 the steps of a solver end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import Field

from flowmatch.component import Component


@dataclass(frozen=True, kw_only=True)
class Grid(Component, ABC):
    """Times from 0 to 1: `times(n)` gives `n + 1` of them, strictly increasing, both ends exact."""

    @abstractmethod
    def _inner(self, steps: int) -> list[float]:
        """The `steps - 1` times between 0 and 1."""

    def times(self, steps: int) -> list[float]:
        """`steps + 1` times from exactly 0 to exactly 1.

        Raises:
            ValueError: two of them coincide, which leaves a step nothing to do, or one is no
                number.
        """
        times = [0.0, *self._inner(steps), 1.0]
        if not all(a < b for a, b in pairwise(times)):  # nor with a NaN among them
            raise ValueError(f"{self} does not increase strictly with {steps} steps")
        return times

    @property
    def name(self) -> str:
        """The grid as `parse_grid` reads it, where its options have a place in that."""
        values = [getattr(self, f.name) for f in fields(self) if f.name != "kind"]
        kind: str = self.kind  # type: ignore[attr-defined]
        return f"{kind}:{','.join(f'{v:g}' for v in values)}" if values else kind

    def between(self, t0: float, t1: float, steps: int) -> list[float]:
        """The grid stretched over `[t0, t1]`; backward (`t1 < t0`) it is walked from its end."""
        low, high = min(t0, t1), max(t0, t1)
        times = [low + (high - low) * u for u in self.times(steps)]
        times[-1] = high  # exact, whatever the rounding
        return times if t0 <= t1 else times[::-1]


@dataclass(frozen=True, kw_only=True)
class UniformGrid(Grid):
    """Equal steps in t."""

    kind: Literal["uniform"] = "uniform"

    def _inner(self, steps: int) -> list[float]:
        return [i / steps for i in range(1, steps)]


@dataclass(frozen=True, kw_only=True)
class ShiftedGrid(Grid):
    """`t = u / (u + shift (1 - u))` of equal steps in u; a shift above 1 looks at noise longer.

    Args:
        shift: > 0; 1 is uniform, 3 what Stable Diffusion 3 uses at 1024 pixels.
    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 23 (there t=1
    is noise).
    """

    shift: float = 3.0
    kind: Literal["shifted"] = "shifted"

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"a shifted grid needs shift > 0, got {self.shift}")

    def _inner(self, steps: int) -> list[float]:
        uniform = (i / steps for i in range(1, steps))
        return [u / (u + self.shift * (1 - u)) for u in uniform]


@dataclass(frozen=True, kw_only=True)
class EDMGrid(Grid):
    """Equal steps in the `rho`-th root of the noise-to-signal ratio of a linear path.

        s_i = (s_max^(1/rho) + i/(n-1) (s_min^(1/rho) - s_max^(1/rho)))^rho,   t_i = 1 / (1 + s_i)

    The first time is moved to 0 and one more step leads from `s_min` to the data, as in the source.

    Args:
        rho: > 0; larger puts more steps near the data.
        sigma_min, sigma_max: ratios `(1 - t) / t` between which the steps lie,
            0 < sigma_min < sigma_max.
    Source: Karras et al. 2022, "Elucidating the Design Space", equation 5.
    """

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    kind: Literal["edm"] = "edm"

    def __post_init__(self) -> None:
        if not (0 < self.rho < math.inf and 0 < self.sigma_min < self.sigma_max < math.inf):
            raise ValueError(
                "an edm grid needs rho > 0 and 0 < sigma_min < sigma_max, got rho="
                f"{self.rho}, sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    def _inner(self, steps: int) -> list[float]:
        a, b = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ratios = [(a + i / max(steps - 1, 1) * (b - a)) ** self.rho for i in range(1, steps)]
        return [1 / (1 + s) for s in ratios]


@dataclass(frozen=True, kw_only=True)
class LogitNormalGrid(Grid):
    """Quantiles of a logit-normal law: steps are short where such training times are frequent.

    Args:
        mean: of logit(t); positive moves the steps towards the data.
        std: of logit(t), > 0; about 1.6 is near uniform, small crowds the steps in the middle.
    """

    mean: float = 0.0
    std: float = 1.0
    kind: Literal["logit_normal"] = "logit_normal"

    def __post_init__(self) -> None:
        if not (0 < self.std < math.inf and math.isfinite(self.mean)):
            raise ValueError(
                f"a logit_normal grid needs a finite mean and std > 0, got mean={self.mean},"
                f" std={self.std}"
            )

    def _inner(self, steps: int) -> list[float]:
        law = NormalDist(self.mean, self.std)
        # from tanh, which does not overflow
        return [(1 + math.tanh(law.inv_cdf(i / steps) / 2)) / 2 for i in range(1, steps)]


@dataclass(frozen=True, kw_only=True)
class ExplicitGrid(Grid):
    """The times themselves.

    Args:
        values: strictly increasing from exactly 0 to exactly 1; one more than the solver's steps.
    """

    values: tuple[float, ...]
    kind: Literal["explicit"] = "explicit"

    def __post_init__(self) -> None:
        if len(self.values) < 2 or self.values[0] != 0 or self.values[-1] != 1:
            raise ValueError(f"a time grid runs from 0 to 1, got {_short(self.values)}")
        for a, b in pairwise(self.values):
            if not b > a:
                raise ValueError(f"a time grid must increase strictly, but {b:g} follows {a:g}")

    @property
    def name(self) -> str:
        """The times, as `parse_grid` reads them."""
        return ",".join(f"{value:.6g}" for value in self.values)

    def times(self, steps: int) -> list[float]:
        if steps != len(self.values) - 1:
            raise ValueError(
                f"a grid of {len(self.values)} times has {len(self.values) - 1} steps, but the"
                f" solver has steps={steps}"
            )
        return list(self.values)

    def _inner(self, steps: int) -> list[float]:
        return self.times(steps)[1:-1]


GridConfig = Annotated[
    UniformGrid | ShiftedGrid | EDMGrid | LogitNormalGrid | ExplicitGrid,
    Field(discriminator="kind"),
]


def parse_grid(text: str) -> GridConfig:
    """The grid that a short text names.

    "uniform", "shifted:3", "edm:7" (rho, or rho, sigma_min, sigma_max), "logit_normal:0,1" (mean,
    std), or the times themselves, "0,0.1,0.4,1".

    Raises:
        ValueError: it cannot be read, or is no grid.
    """
    name, _, rest = text.partition(":")
    makers: dict[str, tuple[set[int], Callable[..., GridConfig]]] = {
        "uniform": ({0}, lambda: UniformGrid()),
        "shifted": ({1}, lambda shift: ShiftedGrid(shift=shift)),
        "edm": ({1, 3}, _edm),
        "logit_normal": ({2}, lambda mean, std: LogitNormalGrid(mean=mean, std=std)),
    }
    listed = rest if name in makers else text
    numbers: list[float] | None
    try:
        numbers = [float(word) for word in listed.split(",")] if listed else []
    except ValueError:
        numbers = None
    if numbers and name not in makers:
        return ExplicitGrid(values=tuple(numbers))
    if numbers is None or name not in makers or len(numbers) not in makers[name][0]:
        raise ValueError(
            f"cannot read the time grid {text!r}; write uniform, shifted:3, edm:7,"
            " logit_normal:0,1, or the times themselves, e.g. 0,0.1,0.4,1"
        )
    return makers[name][1](*numbers)


def _edm(rho: float, sigma_min: float = 0.002, sigma_max: float = 80.0) -> EDMGrid:
    return EDMGrid(rho=rho, sigma_min=sigma_min, sigma_max=sigma_max)


def _short(values: tuple[float, ...]) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:4])
    return shown + (f", ... {values[-1]:g}" if len(values) > 4 else "")
