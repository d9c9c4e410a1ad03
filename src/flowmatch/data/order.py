"""The order in which training visits a data set: shuffled, endless, and without state."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from flowmatch.randomness import keyed_generator


class ShuffledOrder:
    """An endless sequence of indices, each epoch a fresh permutation of 0 ... length - 1.

    Position p belongs to epoch p // length and holds `permutation[p % length]`, where the
    permutation depends on (seed, epoch) alone. So any position is found without replaying those
    before it, and resuming costs nothing.

    Args:
        length: size of the data set, at least 1.
        seed: key of the permutations.
    Raises:
        ValueError: `length` is below 1.
    """

    def __init__(self, length: int, seed: int) -> None:
        if length < 1:
            raise ValueError(f"cannot shuffle a data set of {length} samples; pass at least one")
        self.length = length
        # Two, because a batch may straddle the border of two epochs.
        self._permutation = lru_cache(maxsize=2)(partial(_permutation, length, seed))

    def indices(self, start: int, stop: int) -> Tensor:
        """The indices at positions start ... stop - 1 of the sequence, [stop - start] int64."""
        parts = [torch.empty(0, dtype=torch.int64)]
        while start < stop:
            epoch, offset = divmod(start, self.length)
            count = min(stop - start, self.length - offset)
            parts.append(self._permutation(epoch)[offset : offset + count])
            start += count
        return torch.cat(parts)


def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=keyed_generator("order", seed, epoch))
