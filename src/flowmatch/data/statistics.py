"""Mean and standard deviation of latents: what they are normalised by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.component import Component


@dataclass(frozen=True, kw_only=True)
class LatentStatistics(Component):
    """What latents are normalised by, and whose latents they are.

    Args:
        mean, std: of each channel.
        weights: hash of the autoencoder, so that no other one decodes.
    Raises:
        ValueError: not one positive std for each mean.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"latents have one mean and one std a channel, got {len(self.mean)} and"
                f" {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(
                f"the std of each channel of the latents must be positive, got {self.std}: a"
                " channel that never changes cannot be normalised; choose another autoencoder"
            )

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and std as they broadcast against latents [B, c, h, w]: [c, 1, 1] float32."""
        mean, std = torch.tensor([self.mean, self.std], device=device)[..., None, None]
        return mean, std
