"""What a linear operator is: `y = A x`, its adjoint, its pseudo-inverse, its norm."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flowmatch.randomness import keyed_generator
from flowmatch.tensors import expand_like, sum_flat

ITERATIONS = 50
"""Conjugate-gradient iterations of a pseudo-inverse without a closed form."""
_POWER_ITERATIONS = 50


class LinearOperator(ABC):
    """A linear map from images to measurements, the same for all samples of a batch.

    A new operator defines the map and its adjoint. The rest follows by iteration, and is overridden
    where a closed form exists.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """`A x` of each sample.  [B, *D] -> [B, *M]"""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """`A^T y`, so that `<A x, y> = <x, A^T y>`.  [B, *M] -> [B, *D]"""

    def pinv(self, y: Tensor, *, ridge: float = 0.0) -> Tensor:
        """`A^T (A A^T + ridge I)^+ y`; without a ridge `A^+ y`, the least x of least error.

        Args:
            y: measurements, [B, *M].
            ridge: >= 0. The posterior mean of x ~ N(0, r^2 I) under noise of level s has the ridge
                s^2 / r^2.
        Returns:
            [B, *D].
        """
        return least_squares(self, y, ridge=ridge, iterations=ITERATIONS)

    def norm_squared(self, y: Tensor) -> float:
        """The largest eigenvalue of `A A^T`; of `y` [B, *M] only shape, dtype and device matter.

        By power iteration, i.e. from below.
        """
        u = torch.randn(y[:1].shape, generator=keyed_generator("operator norm")).to(y)
        size = 0.0
        for _ in range(_POWER_ITERATIONS):
            u = self(self.adjoint(u / u.norm()))
            size = float(u.norm())
            if size == 0:
                break
        return size

    def measured(self, y: Tensor) -> int:
        """How many numbers of a sample of `y` [B, *M] are measured."""
        return y[0].numel()

    def naive(self, y: Tensor) -> Tensor:
        """An estimate of x without a model, to start from and to compare with.  -> [B, *D]"""
        return self.pinv(y)

    def shown(self, y: Tensor) -> Tensor:
        """The measurement as a picture of the size of x.  [B, *M] -> [B, *D]"""
        return self.naive(y)


def least_squares(operator: LinearOperator, y: Tensor, *, ridge: float, iterations: int) -> Tensor:
    """The x of least norm among those that minimise `|A x - y|^2 + ridge |x|^2`.

    Each sample has its own step sizes and rests once it has converged, so that it does not depend
    on its batch.

    Source: Hestenes & Stiefel 1952, section 10, in the form CGLS of Björck 1996, "Numerical Methods
    for Least Squares Problems", algorithm 7.4.1.
    """
    residual, s = y, operator.adjoint(y)
    x, direction, gamma = torch.zeros_like(s), s, sum_flat(s**2)
    enough = (torch.finfo(s.dtype).eps ** 2) * gamma
    for _ in range(iterations):
        active = gamma > enough
        if not bool(active.any()):
            break
        q = operator(direction)
        curvature = sum_flat(q**2) + ridge * sum_flat(direction**2)
        a = torch.where(active, gamma / curvature, 0.0)
        x = x + expand_like(a, x) * direction
        residual = residual - expand_like(a, q) * q
        s = operator.adjoint(residual) - ridge * x
        before, gamma = gamma, torch.where(active, sum_flat(s**2), gamma)
        direction = s + expand_like(torch.where(active, gamma / before, 0.0), s) * direction
    return x
