"""The variance-preserving diffusion path with a linear noise rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.paths.affine import AffinePath


@dataclass(frozen=True)
class VP(AffinePath):
    """`alpha(t) = exp(-T(s)/2)`, `sigma(t) = sqrt(1 - alpha^2)`, with `s = 1 - t`.

    `T(s) = beta_min s + (beta_max - beta_min) s^2 / 2` is the noise collected from the data's end.
    At t=0 a little data is left: alpha(0) = 0.0066 with the defaults. This is the path as the
    field's diffusion models define it; sampling from pure noise ignores that remainder, as there.
    The velocity grows like `(1 - t)^(-1/2)` towards t=1.

    Args:
        beta_min: noise rate at the data's end, >= 0.
        beta_max: noise rate at the noise's end, > `beta_min`.
    Source: Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix B; as a flow
    path: Lipman et al. 2023, equation 19.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    kind: Literal["vp"] = "vp"

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min < self.beta_max:
            raise ValueError(
                f"a vp path needs 0 <= beta_min < beta_max, got {self.beta_min} and {self.beta_max}"
            )

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._collected(1 - t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._collected(1 - t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self._rate(1 - t) / 2

    def d_sigma(self, t: Tensor) -> Tensor:
        # from alpha^2 + sigma^2 = 1; infinite at t=1
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def _rate(self, s: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * s

    def _collected(self, s: Tensor) -> Tensor:
        return self.beta_min * s + (self.beta_max - self.beta_min) * s**2 / 2
