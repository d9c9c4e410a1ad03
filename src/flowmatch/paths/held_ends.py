"""A path whose ends are not looked at but crossed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch.paths.affine import AffinePath


@dataclass(frozen=True)
class HeldEnds(AffinePath):
    """Another path, which before `start` is as at `start`, and after `stop` as at `stop`.

    Only its derivatives are not those of that time there, but the mean ones from t=0 to `start` and
    from `stop` to t=1. So the velocity of an x1 and an x0 that are predicted from a point which is
    taken to be there already leads them over the whole stretch, however fast the path is in it.

    Args:
        path: the path in between.
        start: in [0, 1); 0 leaves the beginning as it is.
        stop: in (start, 1]; 1 leaves the end as it is.
    """

    path: AffinePath
    start: float
    stop: float
    _slopes: tuple[float, float, float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        slopes = (*_slopes(self.path, 0.0, self.start), *_slopes(self.path, self.stop, 1.0))
        object.__setattr__(self, "_slopes", slopes)

    def alpha(self, t: Tensor) -> Tensor:
        return self.path.alpha(self.hold(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.path.sigma(self.hold(t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return self._slope(self.path.d_alpha, t, self._slopes[0], self._slopes[2])

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._slope(self.path.d_sigma, t, self._slopes[1], self._slopes[3])

    def hold(self, t: Tensor) -> Tensor:
        """The nearest time from `start` to `stop`.  [B] -> [B]"""
        return t.clamp(self.start, self.stop)

    def _slope(
        self, inside: Callable[[Tensor], Tensor], t: Tensor, first: float, last: float
    ) -> Tensor:
        slope = inside(self.hold(t))
        slope = torch.where(t < self.start, first, slope)
        return torch.where(t > self.stop, last, slope)


def _slopes(path: AffinePath, begin: float, end: float) -> tuple[float, float]:
    """The mean slopes of alpha and sigma over a stretch; 0 over none, which no t is in."""
    if begin == end:
        return 0.0, 0.0
    t = torch.tensor([begin, end], dtype=torch.float64)
    alpha, sigma = path.alpha(t).diff().item(), path.sigma(t).diff().item()
    return alpha / (end - begin), sigma / (end - begin)
