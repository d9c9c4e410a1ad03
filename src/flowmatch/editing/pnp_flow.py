"""Restoration by gradient steps on the data, with the flow as the denoiser between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.editing.operators import LinearOperator
from flowmatch.editing.restoration import Denoiser, Noise, Restoration, midpoints
from flowmatch.tensors import batch_time


@dataclass(frozen=True, kw_only=True)
class PnPFlow(Restoration):
    """Plug-and-play: towards the measurement, back onto the flow's path, denoise; again.

        z = x - (1 - t)^decay A^T (A x - y) / |A|^2,   zt = alpha(t) z + sigma(t) n,
        x = mean over n of E[x1 | xt = zt],   for t from 0 to 1

    The step is in units of the largest that a gradient step on `|A x - y|^2 / 2` may take at once,
    so that one default serves all operators.

    Args:
        steps: times, >= 1.
        decay: how fast trust in the measurement fades, >= 0: small for exact measurements (0 keeps
            full steps to the end), up to 1 for noisy ones.
        draws: noises that a denoised image is the mean over, >= 1; each costs an evaluation.
    Raises:
        ValueError: a value out of its range.
    Source: Martin et al. 2025, "PnP-Flow: Plug-and-Play Image Restoration with Flow Matching",
    algorithm 3 (their alpha is `decay`), at the middles of their time steps.
    """

    steps: int = 50
    decay: float = 0.1
    draws: int = 2
    kind: Literal["pnp"] = "pnp"

    def __post_init__(self) -> None:
        for name in ("steps", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.decay < float("inf"):
            raise ValueError(f"decay must be at least 0, got {self.decay}")

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample."""
        return self.steps * self.draws

    def restore(
        self, denoise: Denoiser, y: Tensor, operator: LinearOperator, noise: Noise
    ) -> Tensor:
        x = operator.naive(y)
        largest = 1 / operator.norm_squared(y)
        for i, t in enumerate(midpoints(self.steps)):
            z = x - (1 - t) ** self.decay * largest * operator.adjoint(operator(x) - y)
            time = batch_time(t, z)
            total = torch.zeros_like(z)
            for k in range(self.draws):
                total += denoise(denoise.path.xt(noise.fresh(i * self.draws + k, z), z, time), t)
            x = total / self.draws
        return x
