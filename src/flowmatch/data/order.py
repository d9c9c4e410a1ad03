"""The order in which training visits a data set: shuffled, endless, and without state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache, partial

import torch
from torch import Tensor

from flowmatch.randomness import keyed_generator


class Order(ABC):
    """Which samples the rows of every global batch hold: a function without state."""

    @abstractmethod
    def rows(self, images: int, start: int, stop: int) -> Tensor:
        """The indices of rows start ... stop - 1 of a batch, [stop - start] int64.

        Args:
            images: how many samples were seen before that batch.
            start, stop: which of its rows.
        """

    def lanes(self, start: int, stop: int) -> Tensor | None:
        """A number for each of these rows of every batch, increasing; None: they do not matter.

        Rows with one number lie near each other in the data from batch to batch, and are best read
        by one process.
        """
        return None


class ShuffledOrder(Order):
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

    def rows(self, images: int, start: int, stop: int) -> Tensor:
        return self.indices(images + start, images + stop)


def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=keyed_generator("order", seed, epoch))
