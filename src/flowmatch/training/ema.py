"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from flowmatch.component import Component

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class EMAConfig(Component):
    """How fast the average forgets.

    Args:
        decay: weight of the past at each step, in [0, 1).
        halflife_images: instead of `decay`: the past counts half after so many images, whatever the
            batch.
        warmup: what limits the decay early on, at update n = 1, 2, ...:
            "none"; "tensorflow-like": (1 + n) / (10 + n);
            "crowsonkb": 1 - (1 + n / inv_gamma) ** -power.
        inv_gamma, power: of "crowsonkb", both > 0; power 3/4 suits shorter, 2/3 longer trainings.
    """

    decay: float = 0.9999
    halflife_images: float | None = None
    warmup: Literal["none", "tensorflow-like", "crowsonkb"] = "crowsonkb"
    inv_gamma: float = 1.0
    power: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"an EMA decay lies in [0, 1), got {self.decay}")
        if self.halflife_images is not None and self.halflife_images <= 0:
            raise ValueError(f"halflife_images must be positive, got {self.halflife_images}")
        if self.inv_gamma <= 0 or self.power <= 0:
            raise ValueError("inv_gamma and power of an EMA warm-up must be positive")

    def decay_at(self, update: int, *, batch: int) -> float:
        """The decay of update number `update` (the first is 1)."""
        decay: float = self.decay
        if self.halflife_images is not None:
            decay = 0.5 ** (batch / self.halflife_images)
        if self.warmup == "tensorflow-like":
            return min(decay, (1 + update) / (10 + update))
        if self.warmup == "crowsonkb":
            return min(decay, 1 - float((1 + update / self.inv_gamma) ** -self.power))
        return decay


class EMA(Generic[Module]):
    """A copy of `module` whose weights follow the original's: `ema += (1 - decay)(w - ema)`.

    The copy is a module of its own, so sampling from it never touches the weights in training.
    """

    def __init__(self, module: Module) -> None:
        self.module: Module = copy.deepcopy(module).eval().requires_grad_(False)
        self._average: list[Tensor] = list(self.module.parameters())
        self._live: list[Tensor] = list(module.parameters())
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move every weight towards the original's; buffers are copied."""
        torch._foreach_lerp_(self._average, self._live, 1 - decay)
        for mine, live in self._buffers:
            mine.copy_(live)
