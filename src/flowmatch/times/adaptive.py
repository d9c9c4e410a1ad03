"""A density that is learned from the losses: what is uncertain is drawn more often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from flowmatch.times.density import TimeDensity, below_one
from flowmatch.times.plain import PlainTime
from flowmatch.times.shifted import Shifted
from flowmatch.times.uniform import Uniform

_PRIOR = 1.0
"""Draws of the mean loss that every part starts with."""


@dataclass(frozen=True, kw_only=True)
class Adaptive(TimeDensity):
    """Another density, from which the losses so far draw some parts more often than others.

    The share of each of `bins` equally likely parts of `of` is in proportion to the root of the
    mean squared loss there, which makes the variance of the estimated loss smallest. Each loss is
    divided by how much more often it was drawn, so what is minimised in the mean is the loss under
    `of`: this is a matter of noise, not of weighting.

    Args:
        of: the density that the objective is meant under.
        bins: parts whose losses are followed.
        halflife_images: the losses of so many images ago count half.
        uniform_share: in (0, 1]; this share of the draws follows `of` itself, so that no part is
            forgotten and no loss is counted more than 1 / uniform_share times.
    Source: the importance sampling of Nichol & Dhariwal 2021, "Improved DDPM", section 3.3.
    """

    of: Annotated[PlainTime | Shifted, Field(discriminator="kind")] = Uniform()
    bins: int = 32
    halflife_images: float = 10_000
    uniform_share: float = 0.1
    kind: Literal["adaptive"] = "adaptive"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"adaptive needs at least 2 bins, got {self.bins}")
        if self.halflife_images <= 0:
            raise ValueError(f"halflife_images must be positive, got {self.halflife_images}")
        if not 0 < self.uniform_share <= 1:
            raise ValueError(f"uniform_share is a share in (0, 1], got {self.uniform_share}")

    @property
    def by_ratio(self) -> bool:
        return self.of.by_ratio

    def quantile(self, u: Tensor) -> Tensor:
        """That of `of`: what has been learned lies in a `LearnedDensity`."""
        return self.of.quantile(u)

    def density(self, t: Tensor) -> Tensor:
        """That of `of`, under which the objective is meant."""
        return self.of.density(t)

    def build(self) -> LearnedDensity:
        """What is learned during a training, from nothing."""
        return LearnedDensity(self)


class Bent(NamedTuple):
    """Uniform numbers after they were bent, and what the losses there count."""

    u: Tensor
    """In [0, 1), [B]."""
    weight: Tensor
    """One over how much more often such a number is drawn than a uniform one, [B]."""


class LearnedDensity(nn.Module):
    """The losses of an `Adaptive` density so far, by equally likely parts of it.

    Args:
        config: the density.
    """

    def __init__(self, config: Adaptive) -> None:
        super().__init__()
        self.config = config
        self.squares: Tensor
        self.counts: Tensor
        self.register_buffer("squares", torch.zeros(config.bins))
        self.register_buffer("counts", torch.zeros(config.bins))
        # of the step under way; no buffer, which data-parallel wrappers would overwrite
        self._fresh: Tensor | None = None

    def shares(self) -> Tensor:
        """How often each part is drawn, [bins], summing to 1."""
        mean = self.squares.sum() / self.counts.sum().clamp(min=1)
        # the prior stands in for parts that were hardly seen
        root = ((self.squares + _PRIOR * mean) / (self.counts + _PRIOR)).sqrt()
        total = root.sum()
        even = torch.full_like(root, 1 / self.config.bins)
        learned = torch.where(total > 0, root / total.clamp(min=1e-30), even)
        return torch.lerp(learned, even, self.config.uniform_share)

    def bend(self, u: Tensor) -> Bent:
        """Uniform numbers [B] in [0, 1) to numbers that follow `shares`."""
        shares = self.shares()
        ends = shares.cumsum(0)
        bin = torch.searchsorted(ends, u.contiguous(), right=True).clamp(max=len(ends) - 1)
        within = ((u - (ends - shares)[bin]) / shares[bin]).clamp(0, 1)
        return Bent(below_one((bin + within) / len(ends)), 1 / (len(ends) * shares[bin]))

    def add(self, u: Tensor, losses: Tensor) -> None:
        """Note the losses [B] at bent numbers [B]; `update` takes them in."""
        bins = self.config.bins
        bin = (u * bins).long().clamp_(0, bins - 1)
        noted = torch.stack([losses.detach().float() ** 2, torch.ones_like(u)], 1)
        fresh = torch.zeros(bins, 2, device=u.device).index_add_(0, bin, noted.float())
        self._fresh = fresh if self._fresh is None else self._fresh + fresh

    def forget(self) -> None:
        """Leave out what was noted since the last update."""
        self._fresh = None

    @torch.no_grad()
    def update(self, total: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Take in what was noted since the last update.

        Args:
            total: sums a tensor over all processes.
        """
        if self._fresh is None:
            return
        fresh, self._fresh = total(self._fresh), None
        # losses that are not finite end the run elsewhere; they must not end the density
        squares, counts = fresh.nan_to_num(posinf=0).unbind(1)
        keep = 0.5 ** (fresh[:, 1].sum() / self.config.halflife_images)
        self.squares.mul_(keep).add_(squares)
        self.counts.mul_(keep).add_(counts)
