"""Distances: how large an error is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowmatch.component import Component
from flowmatch.tensors import mean_flat


@dataclass(frozen=True, kw_only=True)
class Distance(Component, ABC):
    """A size of errors, scaled so that it is the mean square of small ones."""

    @abstractmethod
    def __call__(self, error: Tensor) -> Tensor:
        """The size of each error of a batch.  [B, *D] -> [B]"""


@dataclass(frozen=True, kw_only=True)
class Squared(Distance):
    """`mean_d e_d^2`: its minimum is the conditional mean, which is what a velocity has to be."""

    kind: Literal["squared"] = "squared"

    def __call__(self, error: Tensor) -> Tensor:
        return mean_flat(error**2)


@dataclass(frozen=True, kw_only=True)
class Huber(Distance):
    """`mean_d (e_d^2 if |e_d| < delta else 2 delta |e_d| - delta^2)`: outlying pixels count less.

    Its minimum is between mean and median, so a flow trained with it has not quite the data's law.

    Args:
        delta: where squares turn into absolute values, > 0, in units of the error.
    Source: Huber 1964, equation 2.9, times two.
    """

    delta: float = 1.0
    kind: Literal["huber"] = "huber"

    def __post_init__(self) -> None:
        if self.delta <= 0:
            raise ValueError(f"huber needs delta > 0, got {self.delta}")

    def __call__(self, error: Tensor) -> Tensor:
        size = error.abs()
        inner = size.clamp(max=self.delta)
        return mean_flat(inner * (2 * size - inner))


@dataclass(frozen=True, kw_only=True)
class PseudoHuber(Distance):
    """`2 c (sqrt(m + c^2) - c)` with `m = mean_d e_d^2`: outlying samples count less.

    Args:
        c: > 0, in units of the root mean square of an error. The `c = 0.00054 sqrt(dims)` of the
            source, on norms, is 0.00054 here.
    Source: Song & Dhariwal 2024, "Improved Techniques for Training Consistency Models", equation
    11, times 2 c.
    """

    c: float = 0.03
    kind: Literal["pseudo_huber"] = "pseudo_huber"

    def __post_init__(self) -> None:
        if not 0 < self.c < math.inf:
            raise ValueError(f"pseudo_huber needs c > 0, got {self.c}")

    def __call__(self, error: Tensor) -> Tensor:
        mean = mean_flat(error**2)
        # not 2 c (sqrt(m + c^2) - c), whose difference loses its digits for small errors
        return 2 * self.c * mean / (torch.sqrt(mean + self.c**2) + self.c)


DistanceConfig = Annotated[Squared | Huber | PseudoHuber, Field(discriminator="kind")]
