"""A batch: data samples and what they are conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.tensors import from_uint8


@dataclass(frozen=True)
class Batch:
    """Data samples `x1` [B, *D] and their conditions, one [B, ...] tensor a name.

    `x1` is float32: images in [-1, 1], channels first, or points [B, 2]. Only `Dataset.raw` gives
    images as uint8. `cond` is empty, or holds `"label"`, int64 classes [B], and other conditions in
    float32, NaN where they are absent: scalars [B], vectors [B, dim], texts [B, tokens, dim].
    """

    x1: Tensor
    cond: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.x1)

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """The rows of batches of one kind, one after the other."""
        cond = {name: torch.cat([b.cond[name] for b in batches]) for name in batches[0].cond}
        return cls(torch.cat([b.x1 for b in batches]), cond)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        cond = {name: c.to(device, non_blocking=non_blocking) for name, c in self.cond.items()}
        return Batch(self.x1.to(device, non_blocking=non_blocking), cond)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where a copy to the GPU need not block."""
        return Batch(self.x1.pin_memory(), {name: c.pin_memory() for name, c in self.cond.items()})

    def as_float(self) -> Batch:
        """The batch with uint8 images turned to float32 in [-1, 1]; other data stays as it is."""
        return Batch(from_uint8(self.x1), self.cond) if self.x1.dtype == torch.uint8 else self
