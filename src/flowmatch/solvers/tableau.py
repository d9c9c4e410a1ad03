"""Embedded Runge-Kutta methods as tables, sums of their stages, and numbers on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowmatch.tensors import time_dtype

Numbers = npt.NDArray[np.float64]
"""One number a sample, on the host: [B]."""


class Sum(NamedTuple):
    """`lead * (k[first] + sum_i w_i k_i)`: a weighted sum of stages, ready to be computed."""

    lead: float
    first: int
    second: tuple[int, float] | None
    rest: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, weights: Sequence[float]) -> Sum:
        """The sum with these weights of the first stages, without the terms that are zero."""
        (first, lead), *others = [(i, w) for i, w in enumerate(weights) if w != 0]
        rest = tuple((i, w / lead) for i, w in others)
        return cls(lead, first, rest[0] if rest else None, rest[1:])

    def over_lead(self, k: list[Tensor]) -> Tensor:
        """The sum of the stages `k` divided by `lead`: an operation a term, less one."""
        if self.second is None:
            return k[self.first]
        i, w = self.second
        total = k[self.first].add(k[i], alpha=w)
        for i, w in self.rest:
            total.add_(k[i], alpha=w)
        return total

    def times(self, h: Tensor, x: Tensor, k: list[Tensor]) -> Tensor:
        """`x + h * sum`."""
        return torch.addcmul(x, h, self.over_lead(k), value=self.lead)


class Tableau(NamedTuple):
    """An explicit method whose last stage is the first of the next step."""

    nodes: Numbers
    """Of the stages after the first, [number, 1]; the last is 1."""
    stages: Sequence[Sum]
    """Number i gives stage i + 1 from those before; the last gives the new state."""
    errors: Sequence[Sum]
    """The new state less that of each embedded method."""


def column(numbers: Sequence[float]) -> Numbers:
    """Numbers as [count, 1]."""
    return np.array(numbers)[:, None]


def times_for(x: Tensor, times: npt.NDArray[np.float64]) -> Tensor:
    """Host times [..., B] as a field takes them."""
    return torch.as_tensor(times, dtype=time_dtype(x), device=x.device)


def like(numbers: npt.NDArray[np.generic], x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Host numbers [B] on the device of `x` [B, *D] as [B, 1, ...], to broadcast against it."""
    column = numbers.reshape(-1, *(1,) * (x.ndim - 1))
    return torch.as_tensor(column, dtype=dtype, device=x.device)


def polynomial(rows: Sequence[Sequence[float]], k: list[Tensor], theta: Numbers) -> Tensor:
    """`sum_i k_i sum_j rows[i][j] theta^(j+1)`: the usual form of dense output, over h."""
    total = torch.zeros_like(k[0])
    for row, stage in zip(rows, k, strict=True):
        weight = sum(c * theta ** (j + 1) for j, c in enumerate(row))
        total = torch.addcmul(total, like(np.asarray(weight), stage, stage.dtype), stage)
    return total


def rms(x: Tensor) -> Numbers:
    """Root mean square of each sample of [B, *D], on the host."""
    rows = x.flatten(1)
    norms: Numbers = torch.linalg.vector_norm(rows, dim=1).double().cpu().numpy()
    return norms / math.sqrt(rows.shape[1])
