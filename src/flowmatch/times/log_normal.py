"""EDM's density: the ratio of noise to data is log-normal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowmatch.times.density import TimeDensity
from flowmatch.times.logit_normal import LogitNormal


@dataclass(frozen=True)
class LogNormal(TimeDensity):
    """`ln(sigma/alpha)`, the logarithm of noise over data, is normal.

    On the linear path `sigma/alpha = (1 - t)/t`, so t is logit-normal with minus the mean. On any
    other path the loss takes the t at which that path has the same ratio.

    Args:
        mean: of `ln(sigma/alpha)`; negative moves the draws towards the data (t=1).
        std: of `ln(sigma/alpha)`, > 0.
    Source: Karras et al. 2022, "Elucidating the Design Space", table 1 (its sigma is our ratio, its
    P_mean and P_std are ours).
    """

    mean: float = -1.2
    std: float = 1.2
    kind: Literal["log_normal"] = "log_normal"

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"log_normal needs std > 0, got {self.std}")

    @property
    def by_ratio(self) -> bool:
        return True

    def quantile(self, u: Tensor) -> Tensor:
        return self._of_linear.quantile(u)

    def density(self, t: Tensor) -> Tensor:
        return self._of_linear.density(t)

    @property
    def _of_linear(self) -> LogitNormal:
        return LogitNormal(mean=-self.mean, std=self.std)
