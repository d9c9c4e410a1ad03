"""Draws that are spread evenly over the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowmatch.times.adaptive import Adaptive
from flowmatch.times.density import TimeDensity, below_one
from flowmatch.times.plain import PlainTime
from flowmatch.times.shifted import Shifted
from flowmatch.times.uniform import Uniform


@dataclass(frozen=True, kw_only=True)
class Stratified(TimeDensity):
    """Another density, drawn once in each of B equally likely parts, B being the global batch.

    One random number turns an even circle of B numbers, dealt to the samples of the batch, and the
    density bends them: each t alone follows `of` exactly, and the mean over a batch varies less.

    Args:
        of: the density.
    Source: Kingma et al. 2021, "Variational Diffusion Models", appendix I.1.
    """

    of: Annotated[PlainTime | Shifted | Adaptive, Field(discriminator="kind")] = Uniform()
    kind: Literal["stratified"] = "stratified"

    @property
    def by_ratio(self) -> bool:
        return self.of.by_ratio

    @property
    def spread(self) -> bool:
        return True

    def quantile(self, u: Tensor) -> Tensor:
        return self.of.quantile(u)

    def density(self, t: Tensor) -> Tensor:
        return self.of.density(t)


def even_numbers(start: int, stop: int, batch: int, offset: Tensor) -> Tensor:
    """Numbers of the rows `start:stop` of a batch, which hold one in each of its B parts of [0, 1).

        u_i = (s i / B + offset) mod 1

    The stride s spreads the rows of any slice of the batch over all of [0, 1), so that parts of it
    cost and weigh alike.

    Args:
        start, stop: the slice.
        batch: rows of the global batch.
        offset: one number in [0, 1), the same for all rows, a 0-d or [1] tensor. It makes each
            row's number uniform.
    Returns:
        [stop - start] in [0, 1), on the device and in the dtype of `offset`.
    """
    stride = round(batch * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, batch) != 1:
        stride += 1
    place = torch.arange(start, stop, device=offset.device) * stride % batch
    return below_one((place / batch + offset) % 1)
