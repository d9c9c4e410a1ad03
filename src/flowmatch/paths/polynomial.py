"""Power-law paths: the straight line, travelled slowly at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowmatch.paths.affine import AffinePath


@dataclass(frozen=True)
class Polynomial(AffinePath):
    """`xt = t^n x1 + (1 - t^n) x0`: the linear path on the clock `t^n`.

    For n > 1 nothing moves at t=0, so a velocity there says nothing about x1.

    Args:
        n: the exponent, >= 1, which is the linear path; below, t=0 would be left infinitely fast.
    Source: the polynomial scheduler of Lipman et al. 2024, "Flow Matching Guide and Code",
    table 2; Gat et al. 2024, "Discrete Flow Matching", section 3.
    """

    n: float = 2.0
    kind: Literal["polynomial"] = "polynomial"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(
                f"a polynomial path needs n >= 1, got {self.n}: below, t=0 is infinitely fast"
            )

    def alpha(self, t: Tensor) -> Tensor:
        return t**self.n

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t**self.n

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.n * t ** (self.n - 1)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -self.d_alpha(t)
