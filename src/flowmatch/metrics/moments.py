"""Mean and covariance of features that come in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flowmatch.metrics.rows import as_rows, on_host, slabs


@dataclass
class Moments:
    """The first two moments of the rows seen so far, in float64 on the CPU.

    The sums are kept about the current mean and two sets are joined by

        mean = mean_a + n_b / n * d          d = mean_b - mean_a, n = n_a + n_b
        scatter = scatter_a + scatter_b + n_a n_b / n * d d^T

    so nothing cancels however far the mean lies from zero, and neither the order of the rows nor
    how they are divided among batches and processes matters (but for rounding).

    Args:
        count: rows seen.
        mean: their mean, [D] float64.
        scatter: sum over rows of (x - mean)(x - mean)^T, [D, D] float64.
    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm".
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def zeros(cls, dims: int) -> Self:
        """The moments of no rows of `dims` numbers."""
        wide = torch.float64
        return cls(0, torch.zeros(dims, dtype=wide), torch.zeros(dims, dims, dtype=wide))

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """The moments of all rows of `features` [N, D].

        Raises:
            ValueError: `add` refuses them.
        """
        moments = cls.zeros(features.shape[-1])
        moments.add(features)
        return moments

    def add(self, features: Tensor) -> None:
        """Take in a batch of rows, in place.

        Args:
            features: [N, D] of any floating dtype, on any device.
        Raises:
            ValueError: another shape, no rows, or NaN or infinity.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"expected features as [N, {len(self.mean)}], got shape {tuple(features.shape)};"
                " all batches must come from one feature network"
            )
        for slab in slabs(as_rows(features, "features")):
            rows = on_host(slab)
            mean = rows.mean(0)
            rows = rows - mean
            self._join(len(rows), mean, rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows together, e.g. those of two processes.

        Raises:
            ValueError: they count different numbers of features.
        """
        check_same_dims(self, other)
        both = Moments(self.count, self.mean.clone(), self.scatter.clone())
        both._join(other.count, other.mean, other.scatter)
        return both

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, divided by count - 1: [D, D] float64.

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count}; add more")
        return self.scatter / (self.count - 1)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if total == 0:
            return
        apart = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(apart, apart, alpha=self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total


def check_same_dims(a: Moments, b: Moments) -> None:
    """Raise ValueError unless two sets of moments are of features of one dimension."""
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"moments of {len(a.mean)} and of {len(b.mean)} features cannot meet; take both from"
            " one feature network"
        )
