"""The randomness of a training batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.times import even_numbers


class Draws(NamedTuple):
    """The randomness of one training batch, as an argument rather than a hidden state."""

    noise: Tensor
    """Source samples before the coupling, [B, *D]."""
    time: Tensor
    """Independent uniform numbers in [0, 1) that the time density turns into t, [B] float32."""
    even: Tensor
    """The same for a stratified density: spread evenly over the global batch, [B] float32."""
    drop: Tensor
    """Uniform numbers in [0, 1); conditions are dropped where it is below `label_dropout`, [B]."""

    @classmethod
    def like(cls, x1: Tensor, generator: torch.Generator | None = None) -> Draws:
        """Standard normal noise and uniform numbers for a batch shaped like `x1`."""
        noise = torch.empty_like(x1).normal_(generator=generator)
        uniforms = torch.rand(2, len(x1), generator=generator, device=x1.device)
        offset = torch.rand((), generator=generator, device=x1.device)
        even = even_numbers(0, len(x1), len(x1), offset)
        return cls(noise, uniforms[0], even, uniforms[1])
