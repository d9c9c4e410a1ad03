"""Toy densities in the plane, by which a flow is checked at a glance.

Each function draws `n` points [n, 2] in float32, within about [-4, 4]. Without a `generator` it
draws from torch's global one, as `torch.randn` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from flowmatch.component import Component
from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.memory import MemoryArrays
from flowmatch.randomness import keyed_generator


def moons(n: int, *, generator: Generator | None = None) -> Tensor:
    """Two interleaved half circles of radius 2 with Gaussian noise of 0.1.

    Source: `make_moons` of scikit-learn, centred and twice as large.
    """
    angle = math.pi * torch.rand(n, generator=generator)
    upper = _choose(2, n, generator) == 0
    x = torch.where(upper, angle.cos() - 0.5, 0.5 - angle.cos())
    y = torch.where(upper, angle.sin() - 0.25, 0.25 - angle.sin())
    return 2 * torch.stack([x, y], dim=1) + 0.1 * torch.randn(n, 2, generator=generator)


def eight_gaussians(n: int, *, generator: Generator | None = None) -> Tensor:
    """Eight Gaussians of standard deviation 1/sqrt(8), evenly on a circle of radius sqrt(8).

    Source: Grathwohl et al. 2019 (FFJORD), figure 2.
    """
    angle = math.pi / 4 * _choose(8, n, generator)
    noise = torch.randn(n, 2, generator=generator)
    return math.sqrt(8) * _on_circle(angle) + noise / math.sqrt(8)


def checkerboard(n: int, *, generator: Generator | None = None) -> Tensor:
    """Uniform over the eight dark fields, each 2 x 2, of a 4 x 4 board on [-4, 4)^2.

    Source: Grathwohl et al. 2019 (FFJORD), figure 2.
    """
    column = _choose(4, n, generator)
    row = 2 * _choose(2, n, generator) + column % 2
    corner = torch.stack([column, row], dim=1)
    return 2 * (corner + torch.rand(n, 2, generator=generator)) - 4


def spirals(n: int, *, generator: Generator | None = None) -> Tensor:
    """Two spirals of one and a half turns with Gaussian noise of 0.1; the radius grows to pi.

    Source: Grathwohl et al. 2019 (FFJORD), figure 2.
    """
    angle = 3 * math.pi * torch.rand(n, 1, generator=generator).sqrt()  # even along the arm
    arm = 1 - 2 * _choose(2, n, generator)[:, None]
    points = arm * angle / 3 * _on_circle(angle[:, 0])
    return points + 0.1 * torch.randn(n, 2, generator=generator)


def pinwheel(n: int, *, generator: Generator | None = None) -> Tensor:
    """Five Gaussian blades on a circle of radius 2, bent the more the further out.

    Source: Johnson et al. 2016 (structured VAEs), figure 1.
    """
    radius = 1 + 0.3 * torch.randn(n, generator=generator)
    across = 0.1 * torch.randn(n, generator=generator)
    angle = 2 * math.pi / 5 * _choose(5, n, generator) + 0.25 * radius.exp()
    ahead = _on_circle(angle)
    aside = _on_circle(angle + math.pi / 2)
    return 2 * (radius[:, None] * ahead + across[:, None] * aside)


ToyName = Literal["moons", "8gaussians", "checkerboard", "spirals", "pinwheel"]

TOYS: dict[ToyName, Callable[..., Tensor]] = {
    "moons": moons,
    "8gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "spirals": spirals,
    "pinwheel": pinwheel,
}


@dataclass(frozen=True, kw_only=True)
class Toy(Component):
    """A finite sample of a toy density; the two splits are independent draws.

    Args:
        name: which density.
        samples: how many points, in each split.
        seed: key of the draw.
    """

    name: ToyName
    samples: int = 100_000
    seed: int = 0
    kind: Literal["toy"] = "toy"

    def __post_init__(self) -> None:
        if self.name not in TOYS:
            raise ValueError(f"name must be one of {', '.join(TOYS)}; got {self.name!r}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one point."""
        return (2,)

    def build(self, split: Split = "train") -> Dataset:
        """The points of one split."""
        generator = keyed_generator("toy", self.name, self.seed, split)
        return MemoryArrays(TOYS[self.name](self.samples, generator=generator))


def _choose(options: int, n: int, generator: Generator | None) -> Tensor:
    """`n` numbers from 0, ..., options - 1, equally likely."""
    return torch.randint(options, (n,), generator=generator)


def _on_circle(angle: Tensor) -> Tensor:
    """Points [n, 2] of the unit circle at angles [n]."""
    return torch.stack([angle.cos(), angle.sin()], dim=1)
