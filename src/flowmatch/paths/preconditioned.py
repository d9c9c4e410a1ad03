"""EDM's preconditioning on any affine path: a prediction like the others, and a scaled input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.component import Component


@dataclass(frozen=True, kw_only=True)
class Preconditioned(Component):
    """What a network predicts that sees and says numbers of variance 1 at every t.

        input:       xt / n(t),   n = sqrt(alpha^2 sigma_data^2 + sigma^2)
        prediction:  F = sigma / (sigma_data n) x1 - alpha sigma_data / n x0

    For data of variance sigma_data^2, F has variance 1 and no correlation with xt, so what F says
    about x1 is scaled by as little as possible: `x1 = c_skip xt + c_out F` with EDM's `c_skip` and
    `c_out`. A loss of weight 1 on F is one of EDM's weight on x1, see `losses.EDM`. Time reaches
    the network as t on every path: its embedding plays the part of `c_noise`.

    Args:
        sigma_data: root of the mean square of the data, > 0; of images in [-1, 1] about 0.5.
    Source: Karras et al. 2022, "Elucidating the Design Space", section 5 and appendix B.6 (there
    for alpha = 1).
    """

    sigma_data: float = 0.5
    kind: Literal["edm"] = "edm"

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network's input is multiplied by, `1 / n`.  [B], [B] -> [B]"""
        return 1 / self._norm(alpha, sigma)

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """`(c1, c0)` such that the prediction is `c1 x1 + c0 x0`.  [B], [B] -> [B], [B]"""
        norm = self._norm(alpha, sigma)
        return sigma / (self.sigma_data * norm), -alpha * self.sigma_data / norm

    def _norm(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.sqrt((alpha * self.sigma_data) ** 2 + sigma**2)
