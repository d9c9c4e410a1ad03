"""Encoding images once: shards of latents in a cache, each written whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowmatch.caching import write_whole
from flowmatch.data.autoencoder import Autoencoder
from flowmatch.data.dataset import Dataset, digest
from flowmatch.room import require_space, require_writable

SHARD = 1024
"""Images of a shard: what a kill costs at most, in each process."""
_BATCH = 64
_FORMAT = "flowmatch-latents-1"


@dataclass(frozen=True)
class Sums:
    """What mean and variance of a set follow from, for each channel [c], in float64.

    Args:
        count: values of a channel.
        mean, squares: sums of the codes' means, and of their squares.
        variance: sum of the codes' variances.
    """

    count: int
    mean: Tensor
    squares: Tensor
    variance: Tensor

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.mean + other.mean,
            self.squares + other.squares,
            self.variance + other.variance,
        )


@dataclass(frozen=True)
class Shard:
    """The codes of some images, mapped from their file.

    Args:
        moments: [n, 2, c, h, w] (mean, standard deviation) or [n, 1, c, h, w], float16.
        sums: over all of them.
    """

    moments: Tensor
    sums: Sums

    @classmethod
    def of(cls, moments: Tensor) -> Shard:
        """A shard of codes in float32, rounded as they are stored.

        Raises:
            ValueError: a code that float16 does not hold.
        """
        stored = moments.to(torch.float16)
        if not bool(stored.isfinite().all()):
            raise ValueError(
                "the autoencoder gives latents beyond 65,504, or NaN; choose another autoencoder"
            )
        exact = stored.double()
        mean = exact[:, 0].transpose(0, 1).flatten(1)
        variance = torch.zeros(len(mean), dtype=torch.float64)
        if moments.shape[1] == 2:
            variance = exact[:, 1].square().sum((0, 2, 3))
        return cls(stored, Sums(mean.shape[1], mean.sum(1), mean.square().sum(1), variance))

    @classmethod
    def read(cls, path: Path, shape: tuple[int, ...]) -> Shard | None:
        """The shard in a file; None if there is none that holds codes of (n, c, h, w)."""
        try:
            with safe_open(path, framework="pt") as file:
                moments, sums = file.get_tensor("moments"), file.get_tensor("sums")
        except (OSError, SafetensorError):  # missing, or damaged after it was written
            return None
        if (moments.shape[0], *moments.shape[2:]) != shape:
            return None
        return cls(moments, Sums(moments[:, 0, 0].numel(), *sums))

    def write(self, path: Path) -> None:
        """Write the shard, whole or not at all."""
        sums = torch.stack([self.sums.mean, self.sums.squares, self.sums.variance])
        tensors = {"moments": self.moments, "sums": sums}
        write_whole(path, lambda partial: save_file(tensors, partial))


def folder_of(cache: Path, images: str, weights: str) -> Path:
    """Where the shards of a data set are.

    Args:
        cache: folder of all caches.
        images: identity of the data set.
        weights: hash of the autoencoder.
    """
    return cache / "latents" / digest(_FORMAT, images, weights)


def encoded(
    images: Dataset,
    autoencoder: Autoencoder,
    shape: tuple[int, ...],
    folder: Path,
    *,
    mirrored: bool,
    name: str,
) -> list[Shard]:
    """The codes of a data set; what is missing in the cache is encoded and kept.

    Of several processes each encodes a part, and all wait for each other.

    Args:
        images: what is encoded, without augmentation.
        autoencoder: by what; moved to a GPU if there is one and something is missing.
        shape: of one latent, (c, h, w).
        folder: where the shards are, see `folder_of`.
        mirrored: the mirror images instead.
        name: what to call the images.
    Raises:
        ValueError: an image cannot be used, or the cache not be written.
    """
    starts = range(0, len(images), SHARD)
    files = {
        folder / f"{'mirrored' if mirrored else 'plain'}-{k:05d}.safetensors": range(
            start, min(start + SHARD, len(images))
        )
        for k, start in enumerate(starts)
    }

    def encode_missing(paths: Sequence[Path]) -> None:
        missing = [p for p in paths if Shard.read(p, (len(files[p]), *shape)) is None]
        if not missing:
            return
        require_writable(folder)
        count = sum(len(files[p]) for p in missing)
        require_space(folder, 4 * count * torch.Size(shape).numel(), f"the latents of {name}")
        with _shown(f"{name}{', mirrored' if mirrored else ''}", count, folder) as advance:
            for path in missing:
                _encode(images, files[path], autoencoder, mirrored, advance).write(path)

    rank, processes = _place()
    encode_missing(list(files)[rank::processes])
    if processes > 1:
        dist.barrier()
        encode_missing(list(files))  # on another machine's disk, they are missing here
    shards = [Shard.read(path, (len(rows), *shape)) for path, rows in files.items()]
    if any(shard is None for shard in shards):
        raise ValueError(f"the latents in {folder} were removed or damaged meanwhile; start again")
    return [shard for shard in shards if shard is not None]


def _encode(
    images: Dataset,
    rows: range,
    autoencoder: Autoencoder,
    mirrored: bool,
    advance: Callable[[int], None],
) -> Shard:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    autoencoder.to(device)
    parts = torch.split(torch.arange(rows.start, rows.stop), _BATCH)
    found = []
    with ThreadPoolExecutor(1) as ahead:  # the next images are read while these are encoded
        for batch in ahead.map(lambda part: images.raw(part, None), parts):
            x = batch.to(device).as_float().x1
            found.append(autoencoder.encode(x.flip(-1) if mirrored else x).cpu())
            advance(len(x))
    return Shard.of(torch.cat(found))


@contextmanager
def _shown(name: str, count: int, folder: Path) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, else a line; of several processes the first speaks."""
    rank, _ = _place()
    line = f"encoding {count:,} images of {name} into {folder}"
    if rank or not sys.stderr.isatty():
        if not rank:
            print(line, file=sys.stderr, flush=True)
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"encoding {name}", total=count)
        yield lambda done: progress.advance(task, done)


def _place() -> tuple[int, int]:
    """Which process this is, of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
