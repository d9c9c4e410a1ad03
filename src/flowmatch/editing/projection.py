"""Restoration by projecting each data prediction onto the measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Literal

from torch import Tensor

from flowmatch.editing.operators import LinearOperator
from flowmatch.editing.restoration import Denoiser, Noise, Restoration, midpoints
from flowmatch.paths import AffinePath
from flowmatch.solvers.on_path import points
from flowmatch.tensors import batch_time, expand_like

_NOISY = 0.2
"""The noise from which on x0 follows the corrected prediction: found on correlated Gaussians."""


@dataclass(frozen=True, kw_only=True)
class Projection(Restoration):
    """Sample, and make every data prediction agree with the measurement on the way.

        D = E[x1 | xt],   D' = D + A^T (A A^T + s^2 / r_t^2)^+ (y - A D),
        xs = alpha(s) D' + sqrt(sigma(s)^2 - u^2) x0 + u n

    where n is new noise: all of it at each step, `u = fresh sigma(s)`, or only as much as ancestral
    sampling adds, `u = fresh sigma(s) sqrt(1 - (alpha(t) sigma(s) / (alpha(s) sigma(t)))^2)`. With
    all of it the network's errors are forgotten at each step and images come out cleanest, but they
    vary less than the measurement allows (half the variance on Gaussians, however many steps);
    ancestral noise makes them vary as the posterior does.

    `r_t^2 = sigma^2 / (sigma^2 + alpha^2)` is the variance of x1 given xt for data of variance 1;
    without noise in the measurement `A D' = y` exactly. x0 is the noise that `xt` and D imply; of a
    noisy measurement, by the share `s^2 / (s^2 + 0.2^2)`, that which `xt` and D' imply, without
    which small corrections would add up until y is met. Walking a stretch of the way again from new
    noise (`resample`) gives unknown pixels the time to agree with known ones.

    Args:
        steps: network evaluations of one walk, >= 1.
        sigma_y: level of the measurement's noise, >= 0, in units of the image.
        noise: how much of the noise is new at each step: "all", or as in "ancestral" sampling.
        fresh: share of that, in [0, 1]; 0 keeps to the ODE.
        resample: how often each stretch is walked, >= 1.
        jump: steps of a stretch, >= 1.
    Raises:
        ValueError: a value out of its range.
    Source: Wang et al. 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space
    Model", equations 13, 14 and algorithm 2; the ridge: Song et al. 2023, "Pseudoinverse-Guided
    Diffusion Models", equation 7; resampling: Lugmayr et al. 2022, "RePaint", algorithm 1.
    """

    steps: int = 100
    sigma_y: float = 0.0
    noise: Literal["all", "ancestral"] = "all"
    fresh: float = 1.0
    resample: int = 1
    jump: int = 10
    kind: Literal["projection"] = "projection"

    def __post_init__(self) -> None:
        for name in ("steps", "resample", "jump"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.noise not in ("all", "ancestral"):
            raise ValueError(f'noise is "all" or "ancestral", got {self.noise!r}')
        if not 0 <= self.fresh <= 1:
            raise ValueError(f"fresh is a share in [0, 1], got {self.fresh}")
        if not 0 <= self.sigma_y < float("inf"):
            raise ValueError(f"sigma_y must be at least 0, got {self.sigma_y}")

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample."""
        return self.steps * self.resample

    def restore(
        self, denoise: Denoiser, y: Tensor, operator: LinearOperator, noise: Noise
    ) -> Tensor:
        grid = [*midpoints(self.steps), 1.0]
        x1 = operator.pinv(y)
        x = denoise.path.xt(noise.source(x1), x1, batch_time(grid[0], x1))
        draw = count()
        for first in range(0, self.steps, self.jump):
            stretch = grid[first : first + self.jump + 1]
            for walk in range(self.resample):
                if walk > 0:
                    new = noise.fresh(next(draw), x)
                    x = back(denoise.path, x, stretch[-1], stretch[0], new)
                for t, s in pairwise(stretch):
                    x = self._step(denoise, x, y, operator, t, s, noise.fresh(next(draw), x))
        return x

    def _step(
        self,
        denoise: Denoiser,
        x: Tensor,
        y: Tensor,
        operator: LinearOperator,
        t: float,
        s: float,
        new: Tensor,
    ) -> Tensor:
        """From `x` at t to the next time s, `A` of its data prediction made to agree with y."""
        here, end = points(denoise.path, [t, s])
        variance = here.sigma**2 / (here.sigma**2 + here.alpha**2)
        x1 = denoise(x, t)
        change = operator.pinv(y - operator(x1), ridge=self.sigma_y**2 / variance)
        share = self.sigma_y**2 / (self.sigma_y**2 + _NOISY**2)
        x0 = (x - here.alpha * (x1 + share * change)) / here.sigma
        stays = here.alpha * end.sigma / (end.alpha * here.sigma) if self.noise != "all" else 0.0
        u = self.fresh * end.sigma * math.sqrt(max(0.0, 1 - stays**2))
        left = math.sqrt(max(0.0, end.sigma**2 - u**2))
        return end.alpha * (x1 + change) + left * x0 + u * new


def back(path: AffinePath, x: Tensor, t: float, s: float, new: Tensor) -> Tensor:
    """A sample at t carried back to s < t by the path's own noise `new`, [B, *D].

        xs = alpha(s)/alpha(t) xt + sqrt(sigma(s)^2 - (alpha(s)/alpha(t))^2 sigma(t)^2) n

    Source: Lugmayr et al. 2022, algorithm 1, line 10, for any affine path.
    """
    t_, s_ = batch_time(t, x), batch_time(s, x)
    ratio = path.alpha(s_) / path.alpha(t_)
    variance = path.sigma(s_) ** 2 - ratio**2 * path.sigma(t_) ** 2
    std = variance.clamp(min=0).sqrt()
    return (expand_like(ratio, x) * x + expand_like(std, x) * new).to(x.dtype)
