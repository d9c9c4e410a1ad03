"""The divergence of a velocity, exactly or from random probes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch.component import Component
from flowmatch.randomness import keyed_generator
from flowmatch.tensors import sum_flat

FixedDivergence = Callable[[Tensor, Tensor, bool], Tensor]
"""`(v, x, keep_graph) -> [B, P]`: P estimates of div v at x, all randomness fixed beforehand.

`v` [B, *D] was computed from `x` [B, *D], sample by sample; with `keep_graph` the estimates can be
differentiated in turn.
"""


@dataclass(frozen=True, kw_only=True)
class Divergence(Component, ABC):
    """How `div v = sum_i dv_i / dx_i` is found, from products of vectors with the Jacobian.

    The products are reverse-mode, one backward pass each: the one kind of derivative that every
    network has.
    """

    @property
    @abstractmethod
    def columns(self) -> int:
        """P: how many estimates it gives of each divergence."""

    @abstractmethod
    def fix(self, x: Tensor, seeds: Sequence[int]) -> FixedDivergence:
        """The estimator for samples shaped like `x` [B, *D], of which each has a seed."""

    @abstractmethod
    def error(self, estimates: Tensor) -> Tensor:
        """Standard error of the mean of P estimates [B, P] that came of this divergence, [B]."""


@dataclass(frozen=True, kw_only=True)
class Exact(Divergence):
    """The whole trace: one backward pass for each dimension of a sample, and no error."""

    kind: Literal["exact"] = "exact"

    @property
    def columns(self) -> int:
        return 1

    def fix(self, x: Tensor, seeds: Sequence[int]) -> FixedDivergence:
        return _trace

    def error(self, estimates: Tensor) -> Tensor:
        return torch.zeros_like(estimates[:, 0])


@dataclass(frozen=True, kw_only=True)
class Hutchinson(Divergence):
    """Random probes: `div v = E[e . (dv/dx)^T e]` for any e with mean 0 and covariance 1.

    A sample's probes are drawn once and stay the same along its whole trajectory. So the
    log-density solves one ordinary differential equation, which an adaptive solver can follow;
    probes drawn anew at each call would make its right side jump. Probe p of a sample depends on
    `(seed, the sample's seed, p)` alone, not on the batch or on how many probes there are.

    Args:
        probes: backward passes a call; each gives an estimate of its own, so that two or more give
            an error bar.
        law: "rademacher" (each value -1 or 1; the smallest variance, none at all where the
            Jacobian is diagonal) or "normal".
        seed: of all probes.
    Source: Hutchinson 1990; Grathwohl et al. 2019 (FFJORD), section 3.1, which fixes the probe for
    the length of a solve.
    """

    probes: int = 1
    law: Literal["rademacher", "normal"] = "rademacher"
    seed: int = 0
    kind: Literal["hutchinson"] = "hutchinson"

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"hutchinson needs at least 1 probe, got {self.probes}")
        if self.law not in ("rademacher", "normal"):
            raise ValueError(f"the law of probes is rademacher or normal, got {self.law!r}")

    @property
    def columns(self) -> int:
        return self.probes

    def fix(self, x: Tensor, seeds: Sequence[int]) -> FixedDivergence:
        rows = [[self._probe(x, s, p) for s in seeds] for p in range(self.probes)]
        fixed = [torch.stack(row).to(x) for row in rows]

        def estimate(v: Tensor, x: Tensor, keep_graph: bool) -> Tensor:
            products = [_vjp(v, x, e, keep_graph) for e in fixed]
            return torch.stack([sum_flat(g * e) for g, e in zip(products, fixed, strict=True)], 1)

        return estimate

    def error(self, estimates: Tensor) -> Tensor:
        if self.probes == 1:
            return torch.full_like(estimates[:, 0], math.nan)
        return estimates.std(1) / math.sqrt(self.probes)

    def _probe(self, x: Tensor, seed: int, index: int) -> Tensor:
        """One sample's probe [*D], drawn on the CPU so that every device has the same."""
        generator = keyed_generator("probe", self.seed, seed, index)
        if self.law == "normal":
            return torch.randn(x.shape[1:], generator=generator)
        return 2.0 * torch.randint(2, x.shape[1:], generator=generator) - 1


def _trace(v: Tensor, x: Tensor, keep_graph: bool) -> Tensor:
    flat = v.flatten(1)
    total = torch.zeros_like(flat[:, 0])
    for i in range(flat.shape[1]):
        unit = torch.zeros_like(flat)
        unit[:, i] = 1
        total = total + _vjp(v, x, unit.view_as(v), keep_graph).flatten(1)[:, i]
    return total[:, None]


def _vjp(v: Tensor, x: Tensor, vector: Tensor, keep_graph: bool) -> Tensor:
    """`vector^T dv/dx` of each sample, [B, *D]."""
    product = None
    if v.requires_grad:
        (product,) = torch.autograd.grad(
            v, x, vector, retain_graph=True, create_graph=keep_graph, allow_unused=True
        )
    if product is None:  # no zero: most often a mistake, and then the density would be wrong
        raise ValueError(
            "the velocity carries no derivative with respect to x; a field whose density is asked"
            " for must not be computed under no_grad or from x.detach(). Where it is really"
            " constant in x, add 0 * x"
        )
    return product
