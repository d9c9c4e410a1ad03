"""Fields whose flow has a density in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixtureFlow:
    """From N(0, 1) to a mixture of N(mean_k, std_k^2) on the linear path.

    Given the component, xt is N(t mean_k, t^2 std_k^2 + (1-t)^2); the field is the mean of the
    components' fields under the posterior of the component.
    """

    means: Tensor  # [K, D]
    stds: Tensor  # [K]
    shares: Tensor  # [K], with sum 1

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        t = t[:, None].to(x.dtype)
        variance = t**2 * self.stds**2 + (1 - t) ** 2
        off = x[:, None] - t[:, :, None] * self.means
        share = torch.softmax(self._log_parts(off, variance), dim=1)
        rate = (t * self.stds**2 - (1 - t)) / variance
        return (share[:, :, None] * (self.means + rate[:, :, None] * off)).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._log_parts(x[:, None] - self.means, self.stds**2).logsumexp(1)

    def _log_parts(self, off: Tensor, variance: Tensor) -> Tensor:
        dims = off.shape[-1]
        exponent = -(off**2).sum(-1) / (2 * variance)
        return self.shares.log() + exponent - 0.5 * dims * (2 * math.pi * variance).log()


@dataclass(frozen=True)
class LinearFlow:
    """`dx/dt = A x`: x1 = exp(A) x0 is N(0, exp(A) exp(A)^T), and div v = tr A everywhere."""

    a: Tensor  # [D, D]

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return x @ self.a.T

    def log_prob(self, x: Tensor) -> Tensor:
        root = torch.linalg.matrix_exp(self.a)
        zero = torch.zeros(len(self.a), dtype=x.dtype)
        law = torch.distributions.MultivariateNormal(zero, root @ root.T)
        return law.log_prob(x)

    def probe_variance(self) -> float:
        """Of one Rademacher estimate e^T A e: only the off-diagonal part varies."""
        symmetric = self.a + self.a.T
        return float(symmetric.triu(1).square().sum())


class SineFlow:
    """`dx/dt = sin x` in one dimension: tan(x_t / 2) = exp(t) tan(x_0 / 2)."""

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return torch.sin(x)

    def log_prob(self, x: Tensor) -> Tensor:
        tangent = torch.tan(x[:, 0] / 2)
        before = tangent / math.e
        x0 = 2 * torch.atan(before)
        slope = (1 + tangent**2) / (1 + before**2) / math.e  # dx0 / dx1
        return -(x0**2) / 2 - math.log(2 * math.pi) / 2 + slope.log()


def mixture() -> MixtureFlow:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]], dtype=torch.float64)
    stds = torch.tensor([0.5, 0.3, 0.8], dtype=torch.float64)
    return MixtureFlow(means, stds, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def linear() -> LinearFlow:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return LinearFlow(0.5 * a)
