"""Latents: a set of images as an autoencoder encodes it, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flowmatch.caching import cache_dir
from flowmatch.component import Component
from flowmatch.data.autoencoder import Autoencoder, Pretrained, latent_shape, load
from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.families import ImageConfig
from flowmatch.data.hub import Hub
from flowmatch.data.latents import Latents, MemoryLatents, measure
from flowmatch.data.shards import Shard, encoded, folder_of
from flowmatch.data.statistics import LatentStatistics
from flowmatch.data.tarred import Shards


@dataclass(frozen=True, kw_only=True)
class Latent(Component):
    """Latents of images, normalised to mean 0 and std 1 in each channel over the training set.

    The first `build` encodes the images, and their mirror images where they are flipped; the
    latents stay in the cache. A run keeps the statistics in its config: so it decodes without data.

    Args:
        images: which images; any family, without random crops.
        autoencoder: a folder that `save_pretrained` of diffusers wrote, or a name on the hub.
        subfolder: where in it the autoencoder is, e.g. "vae"; None if it is alone.
        cache: folder of the cache; None takes that of the project, see `caching.cache_dir`.
        sample_posterior: train on draws of the encoder's Gaussian, else on its means. An encoder
            that gives no Gaussian has nothing to draw.
        statistics: what the latents are normalised by; None takes that of the training set. A run
            writes it into its config.
        memory_gib: latents of up to this size (GiB) are held in memory, in each process; more are
            read from the cache as they are used.
    Source: Rombach et al. 2022 (latent diffusion).
    """

    images: ImageConfig
    autoencoder: str
    subfolder: str | None = None
    cache: str | None = None
    sample_posterior: bool = True
    statistics: LatentStatistics | None = None
    memory_gib: float = 2.0
    kind: Literal["latent"] = "latent"

    def __post_init__(self) -> None:
        if getattr(self.images, "crop", "center") in ("random", "adm_random"):
            raise ValueError(
                "images are encoded once, so they cannot be cropped at random; set images.crop:"
                f" {'adm' if isinstance(self.images, Shards) else 'center'}"
            )
        if isinstance(self.images, Hub) and self.images.stream is not None:
            raise ValueError(
                "images are encoded once, and so not streamed; leave out images.stream"
            )
        if self.memory_gib < 0:
            raise ValueError(f"memory_gib must be at least 0 (never in memory): {self.memory_gib}")

    @property
    def source(self) -> Pretrained:
        """Where the autoencoder is."""
        return Pretrained(str(Path(self.autoencoder).expanduser()), self.subfolder)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent; needs the autoencoder's settings alone."""
        return latent_shape(self.source, self.images.shape)

    def build(self, split: Split = "train") -> Dataset:
        """The latents of one split; images that are not in the cache yet are encoded."""
        shape, autoencoder = self.shape, load(self.source)
        statistics = self.statistics
        if statistics is not None:
            _check_weights(statistics, autoencoder, self.source)
        if split == "train" or statistics is None:
            found = self._encoded("train", autoencoder, shape)
            if statistics is None:
                sums = [shard.sums for shard in (*found.plain, *found.mirrored)]
                total = sum(sums[1:], start=sums[0])
                statistics = measure(
                    total, sample_posterior=self.sample_posterior, weights=autoencoder.weights
                )
        if split == "test":
            found = self._encoded("test", autoencoder, shape)
        return self._open(found, statistics)

    def undecoded(self, split: Split) -> Dataset:
        """The images of a split, decoded as they are used: enough to encode, or to ask of what."""
        family: Any = self.images
        lazy = replace(family, memory_gib=0.0) if hasattr(family, "memory_gib") else family
        return lazy.build(split)  # type: ignore[no-any-return]

    def settled(self, dataset: Dataset) -> Latent:
        """The same with the statistics that its data set has."""
        assert isinstance(dataset, Latents)
        return replace(self, statistics=dataset.statistics)

    def decoder(self) -> LatentDecoder:
        """What makes images of a model's latents.

        Raises:
            ValueError: the config holds no statistics: it is not that of a run.
        """
        if self.statistics is None:
            raise ValueError(
                "this config does not say by what its latents were normalised (data.statistics);"
                " training writes it into the run, so give the run directory or its config.yaml"
            )
        return LatentDecoder(self.source, self.statistics, self.images.shape)

    def _encoded(self, split: Split, autoencoder: Autoencoder, shape: tuple[int, ...]) -> _Encoded:
        """A split with its latents, and those of the mirror images where training flips."""
        images = self.undecoded(split)
        identity = images.identity()
        cache = cache_dir() if self.cache is None else Path(self.cache).expanduser()
        folder = folder_of(cache, identity, autoencoder.weights)

        def kind(*, mirrored: bool) -> list[Shard]:
            name = f"{self.images.kind} {split}"
            return encoded(images, autoencoder, shape, folder, mirrored=mirrored, name=name)

        flips = split == "train" and getattr(images, "flip", False)
        plain, mirrored = kind(mirrored=False), kind(mirrored=True) if flips else []
        return _Encoded(images, identity, plain, mirrored)

    def _open(self, found: _Encoded, statistics: LatentStatistics) -> Dataset:
        kinds = [[shard.moments for shard in s] for s in (found.plain, found.mirrored)]
        size = sum(moments.nbytes for shards in kinds for moments in shards)
        fits = size <= self.memory_gib * 2**30
        if fits:
            kinds = [[torch.cat(shards)] if shards else [] for shards in kinds]
        return (MemoryLatents if fits else Latents)(
            *kinds,
            values=found.images.values,
            num_classes=found.images.num_classes,
            statistics=statistics,
            sample_posterior=self.sample_posterior,
            images=found.identity,
        )


class _Encoded(NamedTuple):
    """The images of a split and what was made of them."""

    images: Dataset
    identity: str
    plain: list[Shard]
    mirrored: list[Shard]


class LatentDecoder:
    """Makes images of a model's latents; the autoencoder is loaded when it is first needed.

    Args:
        source: where the autoencoder is.
        statistics: by what the latents were normalised.
        shape: of one image, (C, H, W).
    """

    def __init__(
        self, source: Pretrained, statistics: LatentStatistics, shape: tuple[int, ...]
    ) -> None:
        self.source, self.statistics, self.shape = source, statistics, shape
        self.weights = statistics.weights
        self._autoencoder: Autoencoder | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The images [B, C, H, W] in [-1, 1], float32, of latents [B, c, h, w], on their device.

        Raises:
            ValueError: the autoencoder cannot be loaded, or is not that of the run.
        """
        if self._autoencoder is None:
            self._autoencoder = load(self.source)
            _check_weights(self.statistics, self._autoencoder, self.source)
        mean, std = self.statistics.tensors(x.device)
        return self._autoencoder.to(x.device).decode(x.float() * std + mean, self.shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> LatentDecoder:
        return self  # never trained, so a flow and its average can share it


def _check_weights(
    statistics: LatentStatistics, autoencoder: Autoencoder, source: Pretrained
) -> None:
    if autoencoder.weights != statistics.weights:
        raise ValueError(
            f"the autoencoder {source} (hash {autoencoder.weights}) is not the one that"
            f" data.statistics belong to ({statistics.weights}); give that one with"
            " data.autoencoder=..."
        )
