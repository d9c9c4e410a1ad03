"""The flow to a correlated Gaussian, and its posterior under a linear measurement."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch.paths import AffinePath, Linear


def smooth_covariance(shape: tuple[int, int, int], length: float = 1.2) -> Tensor:
    """Of images [C, H, W] whose pixels resemble their neighbours: [D, D]."""
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    places = torch.cartesian_prod(*axes)
    squared = torch.cdist(places, places) ** 2
    return torch.exp(-squared / (2 * length**2)) + 0.01 * torch.eye(len(places)).double()


@dataclass(frozen=True)
class CorrelatedGaussian:
    """From N(0, I) to N(mean, C): `v = alpha' m + (alpha alpha' C + sigma sigma' I) S^-1 (x -
    alpha m)` with `S = alpha^2 C + sigma^2 I`."""

    shape: tuple[int, int, int] = (1, 4, 4)
    mean: float = 0.3
    path: AffinePath = Linear()
    covariance: Tensor = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "covariance", smooth_covariance(self.shape))

    def __call__(self, x, t, cond=None):
        alpha, sigma, d_alpha, d_sigma = (c[:, None, None] for c in self.path.coefficients(t))
        eye = torch.eye(len(self.covariance), dtype=x.dtype)
        c = self.covariance.to(x.dtype)
        apart = x.flatten(1)[:, :, None] - alpha * self.mean
        apart = torch.linalg.solve(alpha**2 * c + sigma**2 * eye, apart)
        v = d_alpha * self.mean + (alpha * d_alpha * c + sigma * d_sigma * eye) @ apart
        return v.view_as(x)

    def root(self) -> Tensor:
        """The symmetric square root of C: `x1 = mean + root x0` along the ODE."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.sqrt() @ vectors.T

    def draw(self, n: int, *, seed: int = 0) -> Tensor:
        """n images from the prior."""
        generator = torch.Generator().manual_seed(seed)
        x0 = torch.randn(n, len(self.covariance), dtype=torch.float64, generator=generator)
        return (self.mean + x0 @ self.root()).view(n, *self.shape)

    def posterior(self, y: Tensor, operator, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean [B, *D] and covariance [D, D] of x1 given `y = A x1 + noise`."""
        a = matrix_of(operator, self.shape)
        gain = (
            self.covariance
            @ a.T
            @ torch.linalg.pinv(
                a @ self.covariance @ a.T + noise**2 * torch.eye(len(a)).double(), rtol=1e-12
            )
        )
        prior = torch.full((1, *self.shape), self.mean, dtype=torch.float64)
        shift = (y - operator(prior)).flatten(1) @ gain.T
        return prior + shift.view(-1, *self.shape), self.covariance - gain @ a @ self.covariance


def matrix_of(operator, shape: tuple[int, int, int]) -> Tensor:
    """A linear operator as a matrix [M, D]."""
    d = shape[0] * shape[1] * shape[2]
    return operator(torch.eye(d, dtype=torch.float64).view(d, *shape)).flatten(1).T
