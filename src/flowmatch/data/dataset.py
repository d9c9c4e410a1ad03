"""What a data set is to the rest of the library: batches by index, with the randomness given."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from flowmatch.data.batch import Batch
from flowmatch.data.conditions import Values
from flowmatch.data.order import Order, ShuffledOrder

Split = Literal["train", "test"]

UNIFORMS = 4
"""Uniform numbers an augmentation may use, a sample: flip, crop scale, crop top, crop left (or the
key of a latent's draw)."""


class Dataset(ABC):
    """A finite set of samples, batched by index.

    A data set holds no random state. All the randomness of augmentation comes in as `uniforms`
    [B, 4] in [0, 1), so that a sample depends on (seed, step, position) alone, however many
    processes share the work. Column 0 flips an image when below 0.5; columns 1 to 3 are the scale,
    the top and the left of a random crop; of latents, which are not cropped, they key the generator
    of a draw from the encoder's Gaussian. A data set uses the columns that it needs.

    A new data set defines `__len__`, `raw` and `identity`, and sets `shape` and `num_classes`; one
    with other conditions than the class also `values`.
    """

    in_memory: ClassVar[bool] = False
    """Whether a batch is a mere indexing, so that worker processes would only be in the way."""

    random_access: bool = True
    """Whether samples from all over the set can be read at the cost of as many neighbours."""

    shape: tuple[int, ...]
    """Shape of one sample, e.g. (3, 32, 32)."""

    num_classes: int | None
    """Labels lie in [0, num_classes); None for a set without labels."""

    values: Mapping[str, Values] = MappingProxyType({})
    """What the samples are conditioned on, by name; of a batch `raw` gives its part as `cond`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def raw(self, indices: Tensor, uniforms: Tensor | None) -> Batch:
        """The samples as they are stored, images as uint8: a quarter of the bytes to move.

        Args:
            indices: which samples, [B] int64.
            uniforms: the randomness of augmentation, [B, 4] in [0, 1), or None for no augmentation.
        """

    def expect(self, indices: Tensor) -> None:  # noqa: B027 (most sets have nothing to prepare)
        """Prepare to be asked for the samples `indices` [B] soon, where that saves time."""

    @abstractmethod
    def identity(self) -> str:
        """What the plain samples and their labels are: 12 hexadecimal digits, e.g. for a cache.

        Two sets with the same identity have the same plain samples and labels. Augmentation, the
        device and other conditions have no part in it: a caption changes no image.
        """

    def batch(self, indices: Tensor, uniforms: Tensor) -> Batch:
        """The samples `indices` [B], augmented by `uniforms` [B, 4] in [0, 1), for training."""
        return self.raw(indices, uniforms).as_float()

    def plain(self, indices: Tensor) -> Batch:
        """The samples `indices` [B] without augmentation (no flip, centre crop), to evaluate on."""
        return self.raw(indices, None).as_float()

    def order(self, seed: int, *, batch: int, processes: int) -> Order:
        """The order in which training visits the set.

        Args:
            seed: its key.
            batch: rows of a global batch.
            processes: over how many processes these are dealt; the order does not depend on it.
        Raises:
            ValueError: the set cannot be dealt so.
        """
        return ShuffledOrder(len(self), seed)

    def to(self, device: torch.device | str) -> Self:
        """The data set on `device`; one that is not held in memory stays where it is."""
        return self


def digest(*parts: str | Tensor | None) -> str:
    """12 hexadecimal digits of the sha256 of texts and tensors; dtypes and shapes count too."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            sha.update(part.detach().cpu().contiguous().flatten().numpy().data)
        else:  # repr marks where a text ends, so that no two lists of parts read alike
            sha.update(f"{part!r}\n".encode())
    return sha.hexdigest()[:12]
