"""Weightings: how much a loss counts at each t.

A weighting and a time density both decide what a network learns best, by different means: the
density by how often t is seen, at no change of a single loss; the weighting by what a loss counts
once it is seen. They are never mixed here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flowmatch.component import Component
from flowmatch.paths import AffinePath, Prediction


@dataclass(frozen=True, kw_only=True)
class Weighting(Component, ABC):
    """A factor on the squared error, as a function of t."""

    space: ClassVar[Prediction | None] = None
    """What the factor is one on the error of; None: of whatever the loss is measured in."""

    @abstractmethod
    def __call__(self, path: AffinePath, t: Tensor) -> Tensor:
        """The factor at `t`, which lies inside (0, 1).  [B] -> [B]"""


@dataclass(frozen=True, kw_only=True)
class Constant(Weighting):
    """Every t counts alike."""

    kind: Literal["constant"] = "constant"

    def __call__(self, path: AffinePath, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """`min(SNR(t), gamma)` on the error of x1, with `SNR = alpha^2 / sigma^2`.

    Args:
        gamma: > 0; times with less noise than that do not count more.
    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy",
    equation 8.
    """

    gamma: float = 5.0
    kind: Literal["min_snr"] = "min_snr"
    space: ClassVar[Prediction | None] = "x1"

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"min_snr needs gamma > 0, got {self.gamma}")

    def __call__(self, path: AffinePath, t: Tensor) -> Tensor:
        return (path.ratio(t) ** -2).clamp(max=self.gamma)


@dataclass(frozen=True, kw_only=True)
class EDM(Weighting):
    """`(r^2 + sigma_data^2) / (r sigma_data)^2` on the error of x1, with `r = sigma/alpha`.

    It is the weight under which the loss of an untrained preconditioned network is 1 at every t.

    Args:
        sigma_data: root of the mean square of the data, > 0.
    Source: Karras et al. 2022, "Elucidating the Design Space", table 1 (lambda).
    """

    sigma_data: float = 0.5
    kind: Literal["edm"] = "edm"
    space: ClassVar[Prediction | None] = "x1"

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")

    def __call__(self, path: AffinePath, t: Tensor) -> Tensor:
        return path.ratio(t) ** -2 + self.sigma_data**-2


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Weighting):
    """`sigmoid(bias - ln SNR)` on the error of x0: times with much noise count fully.

    Args:
        bias: the ln SNR at which the weight is a half; larger counts finer detail more.
    Source: Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO with Simple Data
    Augmentation", appendix; Hoogeboom et al. 2024, "Simpler Diffusion", equation 9.
    """

    bias: float = 0.0
    kind: Literal["sigmoid"] = "sigmoid"
    space: ClassVar[Prediction | None] = "x0"

    def __call__(self, path: AffinePath, t: Tensor) -> Tensor:
        return torch.sigmoid(self.bias + 2 * path.ratio(t).log())


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Weighting):
    """Learned: `exp(-u(t)) loss + u(t)`, whose minimum over u is the logarithm of the mean loss.

    So every t contributes alike to the gradient, however large its loss. u is a cosine series that
    is trained with the network; it says how uncertain the network is at each t.

    Args:
        terms: length of the series.
    Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
    equation 21 (after Kendall et al. 2018); there u is linear in random Fourier features.
    """

    terms: int = 32
    kind: Literal["uncertainty"] = "uncertainty"

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"uncertainty needs at least 1 term, got {self.terms}")

    def __call__(self, path: AffinePath, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def build(self) -> LearnedUncertainty:
        """The series, at zero."""
        return LearnedUncertainty(self.terms)


class LearnedUncertainty(nn.Module):
    """`u(t) = sum_k w_k cos(pi k t)`, k = 0 .. terms - 1, from w = 0."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(terms))

    def forward(self, t: Tensor) -> Tensor:
        """[B] -> [B]."""
        k = torch.arange(len(self.weight), device=t.device)
        # no matrix product, which autocast would round
        return (torch.cos(math.pi * k * t[:, None]).to(self.weight.dtype) * self.weight).sum(1)


WeightingConfig = Annotated[
    Constant | MinSNR | EDM | Sigmoid | Uncertainty, Field(discriminator="kind")
]
