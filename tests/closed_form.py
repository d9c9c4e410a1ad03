"""Flows whose field is known exactly, so that nothing has to be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch.paths import AffinePath, Linear
from flowmatch.tensors import expand_like


@dataclass(frozen=True)
class GaussianFlow:
    """From N(0, 1) to N(mean, std^2), independently in each coordinate.

    xt is N(alpha mean, s^2) with s^2 = alpha^2 std^2 + sigma^2, and the map from t=0 is affine:
    x_t = alpha mean + s(t) / s(0) * (x_0 - alpha(0) mean).
    """

    mean: float = 1.5
    std: float = 0.5
    path: AffinePath = Linear()

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        c = self.path.coefficients(t)
        alpha, sigma, d_alpha, d_sigma = (expand_like(v, x) for v in c)
        variance = alpha**2 * self.std**2 + sigma**2
        rate = (alpha * d_alpha * self.std**2 + sigma * d_sigma) / variance
        return d_alpha * self.mean + rate * (x - alpha * self.mean)

    def solution(self, x0: Tensor, t: float) -> Tensor:
        """Where a particle that starts at `x0` is at time `t`."""

        def at(time: float) -> tuple[Tensor, Tensor]:
            c = self.path.coefficients(torch.tensor(time, dtype=x0.dtype))
            return c.alpha * self.mean, (c.alpha**2 * self.std**2 + c.sigma**2).sqrt()

        (m0, s0), (mt, st) = at(0.0), at(t)
        return mt + st / s0 * (x0 - m0)


@dataclass(frozen=True)
class MixtureFlow:
    """From N(0, 1) to a mixture of N(mean_k, std^2) in each of D coordinates, on any affine path.

    xt is a mixture of N(alpha mean_k, s^2), s^2 = alpha^2 std^2 + sigma^2, and the velocity is the
    mean of the components' velocities under their posterior. Density and score are exact too.
    """

    means: tuple[tuple[float, ...], ...] = ((-2.0,), (1.0,), (2.5,))
    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    std: float = 0.3
    path: AffinePath = Linear()

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        c = self.path.coefficients(t.to(x.dtype))
        alpha, sigma, d_alpha, d_sigma = (v[:, None, None] for v in c)
        means = torch.tensor(self.means, dtype=x.dtype)
        variance = alpha**2 * self.std**2 + sigma**2
        off = x[:, None] - alpha * means  # [B, K, D]
        log = -(off**2).sum(-1) / (2 * variance[..., 0])
        posterior = torch.softmax(log + torch.tensor(self.weights, dtype=x.dtype).log(), 1)
        rate = (alpha * d_alpha * self.std**2 + sigma * d_sigma) / variance
        return (posterior[..., None] * (d_alpha * means + rate * off)).sum(1)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples of the target, [n, D] float64."""
        which = torch.multinomial(torch.tensor(self.weights), n, True, generator=generator)
        means = torch.tensor(self.means, dtype=torch.float64)[which]
        return means + self.std * torch.randn(means.shape, generator=generator, dtype=means.dtype)


@dataclass(frozen=True)
class PointsFlow:
    """From N(0, 1) to equally likely points [K, D], on the linear path.

    The denoiser is a softmax over the points; at t=1 the field is what a trained network says
    there, E[x1 - x0 | x1 = x] = x: it has no idea of the noise any more.
    """

    points: Tensor
    path: ClassVar[AffinePath] = Linear()

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        t = t.to(x.dtype)[:, None]
        left = (1 - t).clamp(min=1e-12)
        squared = ((x[:, None] - t[:, None] * self.points) ** 2).sum(-1)
        weights = torch.softmax(-squared / (2 * left**2), dim=1)
        velocity = (weights @ self.points - x) / left
        return torch.where(t >= 1, x, velocity)

    def distance(self, x: Tensor) -> Tensor:
        """Distance of each sample from the nearest point, [B]."""
        return torch.cdist(x, self.points).min(1).values
