"""Flows to mixtures of Gaussians in closed form: the fields that solvers are compared on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.paths import AffinePath, Linear
from flowmatch.randomness import keyed_generator
from flowmatch.solvers import Dopri8


@dataclass(frozen=True)
class MixtureFlow:
    """From N(0, I) to equally likely Gaussians, on the linear path: the exact velocity.

    Mode k is N(mu_k, S_k) with S_k = rest^2 I + U_k diag(spread^2 - rest^2) U_k^T. At time t it is
    N(t mu_k, C_k) with C_k = t^2 S_k + (1-t)^2 I, so

        v(x, t) = sum_k p(k | x) (mu_k + (t S_k - (1-t) I) C_k^-1 (x - t mu_k))

    which is smooth on all of [0, 1].

    Args:
        means: [K, D].
        axes: U_k, orthonormal columns, [K, D, R]; R may be 0.
        spread: standard deviations along them, [K, R].
        rest: standard deviation in every other direction, > 0.
    Source: Lipman et al. 2023, "Flow Matching", theorem 1, for the mixture of conditional fields.
    """

    means: Tensor
    axes: Tensor
    spread: Tensor
    rest: float
    path: AffinePath = Linear()

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        t = t.to(x.dtype).reshape(-1, 1, 1)
        offset = x[:, None] - t * self.means  # [B, K, D]
        along = torch.einsum("bkd,kdr->bkr", offset, self.axes)
        wide = t**2 * self.spread**2 + (1 - t) ** 2  # variances [B, K, R]
        narrow = t**2 * self.rest**2 + (1 - t) ** 2  # [B, 1, 1]
        rate_wide = (t * self.spread**2 - (1 - t)) / wide
        rate_narrow = (t * self.rest**2 - (1 - t)) / narrow
        squared = (offset**2).sum(-1) / narrow[..., 0]
        squared = squared + (along**2 * (1 / wide - 1 / narrow)).sum(-1)
        weights = torch.softmax(-0.5 * (squared + wide.log().sum(-1)), dim=1)
        inside = torch.einsum("bkr,kdr->bkd", along * (rate_wide - rate_narrow), self.axes)
        return torch.einsum("bk,bkd->bd", weights, self.means + rate_narrow * offset + inside)

    def exact(self, x0: Tensor, tolerance: float = 1e-9) -> Tensor:
        """Where the exact flow takes each x0, by a solve of order 8."""
        solver = Dopri8(rtol=tolerance, atol=tolerance, safe_end=False)
        return solver.integrate(lambda x, t: self(x, torch.as_tensor(t)), x0)

    def draw(self, count: int, *key: int | str) -> Tensor:
        """`count` exact samples of the mixture, [count, D]."""
        generator = keyed_generator("mixture", *key)
        k = torch.randint(len(self.means), (count,), generator=generator)
        z = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        along = torch.einsum("bd,bdr->br", z, self.axes[k])
        wider = torch.einsum("br,bdr->bd", along * (self.spread[k] - self.rest), self.axes[k])
        return self.means[k] + self.rest * z + wider


def circle(modes: int = 8, radius: float = 2.0, std: float = 0.1) -> MixtureFlow:
    """Narrow round Gaussians on a circle, 2-D."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return MixtureFlow(means, means.new_zeros(modes, 2, 0), means.new_zeros(modes, 0), std)


def sheets(modes: int = 10, dim: int = 64, rank: int = 6) -> MixtureFlow:
    """Flat anisotropic Gaussians like classes of images: wide along few directions, thin else."""
    generator = keyed_generator("mixture sheets", modes, dim, rank)
    means = 0.5 * torch.randn(modes, dim, generator=generator, dtype=torch.float64)
    random = torch.randn(modes, dim, rank, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, -0.7, rank, dtype=torch.float64).expand(modes, rank)
    return MixtureFlow(means, torch.linalg.qr(random).Q, spread, 0.05)
