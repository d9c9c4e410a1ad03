"""Samples in tar files, as WebDataset reads them."""

from __future__ import annotations

import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowmatch.data.pixels import encode_png
from flowmatch.data.tar import Members, write_tar
from flowmatch.generation.drawing import Drawn
from flowmatch.generation.job import SampleJob
from flowmatch.generation.store import Store, as_image

_SHARD = re.compile(r"shard-\d{6,}\.tar")
_PIECE = 64


class ShardStore(Store):
    """`shard-000000.tar ...`: shard k holds the samples from `k * shard_size` on.

    Which shard a sample is in thus follows from its seed alone, and the bytes of a shard from the
    samples in it. A shard is written when its last sample is there.
    """

    def __init__(self, job: SampleJob) -> None:
        super().__init__(job)
        self._waiting: dict[int, dict[int, Members]] = {}
        self._wanted: dict[int, int] = {}
        self._lock = threading.Lock()

    def missing(self, process: int, processes: int) -> list[int]:
        shards: dict[int, list[int]] = {}
        for seed in self.job.seeds:
            shards.setdefault(seed // self.job.shard_size, []).append(seed)
        found = []
        for shard in list(shards)[process::processes]:
            there = set(_keys(self._path(shard)))
            seeds = [seed for seed in shards[shard] if seed not in there]
            self._wanted[shard] = len(seeds)
            found += seeds
        return found

    def pieces(self, drawn: Drawn) -> Iterator[Drawn]:
        for start in range(0, len(drawn.seeds), _PIECE):
            yield drawn.rows(start, start + _PIECE)

    def write(self, drawn: Drawn) -> None:
        for i, seed in enumerate(drawn.seeds):
            label = None if drawn.labels is None else drawn.labels[i]
            members = self._members(seed, drawn.x[i], label)
            shard = seed // self.job.shard_size
            with self._lock:
                waiting = self._waiting.setdefault(shard, {})
                waiting[seed] = members
                complete = len(waiting) == self._wanted[shard]
                if complete:
                    del self._waiting[shard]
            if complete:
                path = self._path(shard)
                write_shard(path, {**dict(read_shard(path)), **waiting})

    def held(self) -> list[int]:
        paths = (p for p in self.folder.iterdir() if _SHARD.fullmatch(p.name))
        return sorted(seed for path in paths for seed in _keys(path))

    def first(self, count: int) -> Tensor:
        found: dict[int, Members] = {}
        asked = self.job.seeds[:count]
        for shard in dict.fromkeys(seed // self.job.shard_size for seed in asked):
            found |= dict(read_shard(self._path(shard)))
        return torch.stack([_sample(found[seed]) for seed in asked])

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.tar"

    def _members(self, seed: int, x: Tensor, label: int | None) -> Members:
        members: dict[str, bytes] = {}
        if x.ndim == 3:
            members["png"] = encode_png(x)
        else:
            array = io.BytesIO()
            np.save(array, x.numpy())
            members["npy"] = array.getvalue()
        if label is not None:
            members["cls"] = str(label).encode()
        facts = {"seed": seed, "stream": self.job.stream, "label": label}
        return members | {"json": json.dumps(facts).encode()}


def write_shard(path: Path, samples: Mapping[int, Members]) -> None:
    """Write samples by seed as a tar file, whole or not at all; its bytes follow from them."""
    write_tar(path, ((f"{seed:05d}", samples[seed]) for seed in sorted(samples)))


def read_shard(path: Path) -> Iterator[tuple[int, Members]]:
    """The samples of a shard by seed; nothing if there is no such file.

    Raises:
        ValueError: it is no shard of ours, or it was damaged after it was written.
    """
    samples: dict[int, dict[str, bytes]] = {}
    for tar, member in _members_of(path):
        content = tar.extractfile(member)
        assert content is not None
        key, _, suffix = member.name.partition(".")
        samples.setdefault(int(key), {})[suffix] = content.read()
    yield from samples.items()


def _keys(path: Path) -> list[int]:
    """The seeds in a shard, from its headers alone."""
    return list(dict.fromkeys(int(m.name.partition(".")[0]) for _, m in _members_of(path)))


def _members_of(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    if not path.exists():
        return
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile() or not member.name.partition(".")[0].isdecimal():
                    raise ValueError(f"{member.name} is no sample")
                yield tar, member
    except (tarfile.TarError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to draw it again") from None


def _sample(members: Members) -> Tensor:
    if "png" in members:
        with Image.open(io.BytesIO(members["png"])) as image:
            return as_image(np.asarray(image))
    return torch.from_numpy(np.load(io.BytesIO(members["npy"])))
