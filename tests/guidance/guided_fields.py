"""Conditional fields in closed form, and networks that record how they were called."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from closed_form import GaussianFlow
from flowmatch.paths import AffinePath, Linear

MEANS = torch.tensor([-2.0, 1.0, 3.0], dtype=torch.float64)
NULL_MEAN = 0.5


@dataclass(frozen=True)
class Classes:
    """Class k is N(MEANS[k], std^2) and the null class N(NULL_MEAN, std^2) in each coordinate.

    With one std for all, the velocity is affine in the mean. So the guided field is that of a
    Gaussian too, with the mean `NULL_MEAN + scale * (MEANS[k] - NULL_MEAN)`.
    """

    path: AffinePath = Linear()
    std: float = 0.5

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        if cond is None:
            return self.gaussian(NULL_MEAN)(x, t)
        means = torch.cat([MEANS, torch.tensor([NULL_MEAN])])[cond["label"]]
        return self.gaussian(means.reshape(-1, *[1] * (x.ndim - 1)))(x, t)

    def gaussian(self, mean: float | Tensor) -> GaussianFlow:
        return GaussianFlow(mean=mean, std=self.std, path=self.path)

    def guided(self, scale: float, labels: Tensor) -> GaussianFlow:
        """What guidance with this scale gives, for samples [B, D]."""
        return self.gaussian(NULL_MEAN + scale * (MEANS[labels][:, None] - NULL_MEAN))


class ClassesNet(nn.Module):
    """`Classes` as a network, which keeps the sizes of its batches.

    A batch of more than `room` samples does not fit into its memory.
    """

    num_classes = 3

    def __init__(self, room: float = float("inf")) -> None:
        super().__init__()
        self.room = room
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        self.batches.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return Classes()(x, t, cond)


def points(n: int = 6, d: int = 4) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Samples, a time of its own for each within (0.1, 0.9), and labels."""
    x = torch.randn(n, d, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    return x, t, {"label": torch.arange(n) % 3}
