"""Randomness without state: every number is a function of a key that says what it is for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

BLOCK = 32
"""Samples drawn by one generator. Part of what a seed means: changing it changes every run."""


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on its key alone, e.g. `("noise", seed, step, block)`.

    All randomness of training and sampling comes from such generators. So nothing has to be saved
    to resume exactly, and neither batch size nor the number of processes changes a draw.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") >> 1  # 63 bits: manual_seed takes a signed integer
    return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Rows:
    """The rows `start:stop` of a global batch, and the key that their random numbers follow from.

    Numbers are drawn in fixed blocks of rows, each from a generator of its own, and the slice is
    cut out. So it does not matter which process computes a row, or together with which others.
    """

    key: tuple[int | str, ...]
    start: int
    stop: int

    def for_purpose(self, *purpose: int | str) -> Rows:
        """The same rows, for numbers that are independent of those of any other purpose."""
        return replace(self, key=(*self.key, *purpose))

    def draw(
        self,
        shape: tuple[int, ...],
        *,
        law: Literal["uniform", "normal"] = "uniform",
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Numbers in [0, 1), or standard normal ones: [stop - start, *shape] float32."""
        first, last = self.start // BLOCK, (self.stop - 1) // BLOCK
        out = torch.empty((last - first + 1) * BLOCK, *shape, device=device)
        for i, block in enumerate(range(first, last + 1)):
            generator = keyed_generator(*self.key, block, device=device)
            rows = out[i * BLOCK : (i + 1) * BLOCK]
            if law == "normal":
                rows.normal_(generator=generator)
            else:
                rows.uniform_(generator=generator)
        return out[self.start - first * BLOCK : self.stop - first * BLOCK]
