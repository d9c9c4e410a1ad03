"""Data sets of latents: draws of what an encoder made of images, normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from flowmatch.data.batch import Batch
from flowmatch.data.conditions import Values, moved, rows_of
from flowmatch.data.dataset import Dataset, digest
from flowmatch.data.shards import SHARD, Sums
from flowmatch.data.statistics import LatentStatistics
from flowmatch.randomness import keyed_generator
from flowmatch.tensors import expand_like, send


class Latents(Dataset):
    """Latents whose shards are mapped from files and read as they are used.

        x1 = (m + s eps - mean) / std,   eps ~ N(0, 1)

    with the encoder's m and s of the sample, and `mean` and `std` of the whole set, for each
    channel. Without augmentation, or on demand, eps is 0. Its numbers follow from columns 1 to 3
    of the sample's `uniforms`, by a generator keyed with them: latents are never cropped, so these
    have nothing else to say. Column 0 chooses the latent of the mirrored image when below 0.5.

    Args:
        plain: codes [n, 2, c, h, w] or [n, 1, c, h, w], in shards of `SHARD`.
        mirrored: those of the mirrored images, likewise; empty if they are not flipped.
        values, num_classes: what the images are conditioned on.
        statistics: mean and std of each channel.
        sample_posterior: whether to draw eps.
        images: identity of the images.
    """

    in_memory: ClassVar[bool] = False

    def __init__(
        self,
        plain: Sequence[Tensor],
        mirrored: Sequence[Tensor],
        *,
        values: Mapping[str, Values],
        num_classes: int | None,
        statistics: LatentStatistics,
        sample_posterior: bool,
        images: str,
    ) -> None:
        self.plain_shards, self.mirrored_shards = list(plain), list(mirrored)
        self.values, self.num_classes = values, num_classes
        self.statistics, self.sample_posterior, self.images = statistics, sample_posterior, images
        self._count = sum(len(shard) for shard in plain)
        self.shape = tuple(plain[0].shape[2:])
        self._mean, self._std = statistics.tensors(plain[0].device)

    def __len__(self) -> int:
        return self._count

    def raw(self, indices: Tensor, uniforms: Tensor | None) -> Batch:
        device = self._mean.device
        here = send(indices, device)
        mirrored = None
        if self.mirrored_shards and uniforms is not None:
            mirrored = send(uniforms[:, 0], device) < 0.5
        moments = self._moments(here, mirrored).float()
        x = moments[:, 0]
        if self.sample_posterior and uniforms is not None and moments.shape[1] == 2:
            x = x + moments[:, 1] * send(_noise(uniforms, self.shape), device)
        cond = {name: send(v, device) for name, v in rows_of(self.values, here).items()}
        return Batch((x - self._mean) / self._std, cond)

    def identity(self) -> str:
        return digest(self.images, repr(self.statistics))

    def _moments(self, indices: Tensor, mirrored: Tensor | None) -> Tensor:
        """The codes of some images, or of their mirror images: [B, 2 or 1, c, h, w] float16."""
        flips = [False] * len(indices) if mirrored is None else mirrored.tolist()
        rows = []
        for index, flip in zip(indices.tolist(), flips, strict=True):
            shards = self.mirrored_shards if flip else self.plain_shards
            rows.append(shards[index // SHARD][index % SHARD])
        return torch.stack(rows)


class MemoryLatents(Latents):
    """Latents held in memory, each kind in one tensor, on the CPU or the GPU; see `Latents`."""

    in_memory: ClassVar[bool] = True

    def to(self, device: torch.device | str) -> Self:
        return type(self)(
            [shard.to(device) for shard in self.plain_shards],
            [shard.to(device) for shard in self.mirrored_shards],
            values=moved(self.values, device),
            num_classes=self.num_classes,
            statistics=self.statistics,
            sample_posterior=self.sample_posterior,
            images=self.images,
        )

    def _moments(self, indices: Tensor, mirrored: Tensor | None) -> Tensor:
        (plain,) = self.plain_shards
        found = plain.index_select(0, indices)
        if mirrored is None:
            return found
        (shard,) = self.mirrored_shards
        return torch.where(expand_like(mirrored, shard), shard.index_select(0, indices), found)


def measure(sums: Sums, *, sample_posterior: bool, weights: str) -> LatentStatistics:
    """Mean and std of each channel over a set, of draws or of the encoder's means.

    mean = E[m],   std^2 = E[m^2] - E[m]^2 (+ E[s^2] of draws)
    """
    mean = sums.mean / sums.count
    variance = sums.squares / sums.count - mean.square()
    if sample_posterior:
        variance = variance + sums.variance / sums.count
    std = variance.clamp(min=0).sqrt()
    return LatentStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()), weights=weights)


def _noise(uniforms: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers [B, *shape] that follow from columns 1 to 3 of `uniforms` [B, 4]."""
    keys = (uniforms[:, 1:].double() * 2**24).long().tolist()  # float32 in [0, 1) to integers
    return torch.stack(
        [torch.randn(shape, generator=keyed_generator("posterior", *key)) for key in keys]
    )
