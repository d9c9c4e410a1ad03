"""What a time density is, and wrappers around one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.component import Component


@dataclass(frozen=True)
class TimeDensity(Component, ABC):
    """A probability density on (0, 1), from which training draws t.

    It is given by its quantile function: the caller brings uniform numbers (one a sample, spread
    over the batch, ...) and the density bends them.
    """

    @property
    def by_ratio(self) -> bool:
        """Whether this is a density of the ratio of noise to data, `sigma(t)/alpha(t)`.

        Then `quantile` gives the t at which the linear path has the ratio; another path has it at
        another t.
        """
        return False

    @property
    def spread(self) -> bool:
        """Whether draws are spread evenly over the global batch, see `Stratified`."""
        return False

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The t below which a share `u` of all draws lies.  [B] in [0, 1) -> [B] in [0, 1)"""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """The probability density at `t`, which integrates to 1 over (0, 1).  [B] -> [B]"""

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws, [n] float32, on the generator's device."""
        device = generator.device if generator is not None else None
        return self.quantile(torch.rand(n, generator=generator, device=device))


def below_one(t: Tensor) -> Tensor:
    """`t`, or the largest number below 1 where rounding made it 1."""
    return t.clamp(max=1 - torch.finfo(t.dtype).eps / 2)
