"""AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from flowmatch.component import Component
from flowmatch.training.optimizer_state import guard_loading


@dataclass(frozen=True, kw_only=True)
class AdamW(Component):
    """Adam with decoupled weight decay, in torch's fused kernel where the device has one.

    Args:
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the second moment's root.
        weight_decay: per step, times the learning rate; 0, as in most recipes of flow matching, is
            Adam. It takes all parameters, gains and biases too, as in torch.
    Raises:
        ValueError: a value is out of its range.
    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    kind: Literal["adamw"] = "adamw"

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.eps, self.weight_decay)

    def build(self, module: nn.Module, lr: float) -> torch.optim.AdamW:
        """The optimizer of a module, which already lies on its device."""
        parameters = list(module.parameters())
        optimizer = torch.optim.AdamW(
            parameters,
            lr=lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=have_fused_kernel(parameters),
        )
        guard_loading(optimizer)
        return optimizer


def check_adamw(betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    """Refuse values out of their range.

    Raises:
        ValueError: says which.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas lie in [0, 1), got {betas}")
    if eps <= 0:
        raise ValueError(f"eps must be positive, got {eps}")
    if weight_decay < 0:
        raise ValueError(f"weight_decay cannot be negative, got {weight_decay}")


def have_fused_kernel(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch's fused AdamW runs where these parameters lie."""
    return all(p.device.type in ("cpu", "cuda") for p in parameters)
