"""Embedded Runge-Kutta methods as tables, their stages, and numbers between host and device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowmatch.tensors import time_dtype

Numbers = npt.NDArray[np.float64]
"""One number a sample, on the host: [B]."""


class Tableau(NamedTuple):
    """An explicit method of S + 1 stages whose last stage is the first of the next step."""

    nodes: Numbers
    """Of the stages after the first, [S, 1]; the last is 1."""
    weights: Numbers
    """[S + E, S + 1]: row i < S gives stage i + 1 from those before it, row S - 1 the new state;
    the others give the new state less that of each of E embedded methods."""

    @classmethod
    def of(
        cls,
        nodes: Sequence[float],
        stages: Sequence[Sequence[float]],
        errors: Sequence[Sequence[float]],
    ) -> Tableau:
        """From rows as they are printed, without the zeros at their ends."""
        weights = np.zeros((len(stages) + len(errors), len(stages) + 1))
        for row, values in zip(weights, (*stages, *errors), strict=True):
            row[: len(values)] = values
        return cls(np.array(nodes)[:, None], weights)


class Stages:
    """The stages of a step in one buffer, so that a weighted sum of them is one product.

    Term by term, the sums of a step of order 8 would take 75 operations. Stages that gradients flow
    through cannot share a buffer; they are stacked for each sum.

    Args:
        x: what the stages are shaped like, [B, *D].
        tableau: the method.
    """

    def __init__(self, x: Tensor, tableau: Tableau) -> None:
        self.tableau = tableau
        sums, count = tableau.weights.shape
        buffer = x.new_empty(count, *x.shape)
        columns = buffer.flatten(1).t()
        weights = torch.as_tensor(tableau.weights, dtype=x.dtype, device=x.device)
        self._kept = [x] * count
        self._tracked = False
        self._slots = [buffer[i] for i in range(count)]
        self._first = [columns[:, : i + 1] for i in range(count)]
        self._weights = [weights[r, : min(r + 1, count)] for r in range(sums)]

    def put(self, i: int, stage: Tensor) -> None:
        """Keep stage i."""
        self._kept[i] = stage
        self._tracked |= stage.requires_grad
        if not self._tracked:
            self._slots[i].copy_(stage)

    def sum(self, row: int) -> Tensor:
        """`sum_i weights[row, i] stage_i` over the stages that the row is made from, [B, *D]."""
        weights = self._weights[row]
        if self._tracked:
            total: Tensor = torch.tensordot(weights, torch.stack(self._kept[: len(weights)]), 1)
            return total
        return torch.mv(self._first[len(weights) - 1], weights).view_as(self._slots[0])

    def errors(self) -> Iterator[Tensor]:
        """The new state less that of each embedded method, over the step size."""
        return (self.sum(row) for row in range(len(self._slots) - 1, len(self._weights)))


def weighted(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """`sum_i weights_i k_i` of as many stages as there are."""
    total = torch.zeros_like(k[0])
    for weight, stage in zip(weights, k, strict=False):
        if weight != 0:
            total = total.add(stage, alpha=weight)
    return total


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
