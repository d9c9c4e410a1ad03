"""Optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from flowmatch.component import Component


@dataclass(frozen=True, kw_only=True)
class AdamW(Component):
    """Adam with decoupled weight decay, in torch's fused kernel where the device has one.

    Args:
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the second moment's root.
        weight_decay: per step, times the learning rate; 0 is Adam.
    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    kind: Literal["adamw"] = "adamw"

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas lie in [0, 1), got {self.betas}")
        if self.eps <= 0 or self.weight_decay < 0:
            raise ValueError("adamw needs eps > 0 and weight_decay >= 0")

    def build(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.AdamW:
        """The optimizer over `parameters`, which already lie on their device."""
        parameters = list(parameters)
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.AdamW(
            parameters,
            lr=lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=fused,
        )


OptimizerConfig = AdamW
