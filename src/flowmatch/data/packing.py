"""Putting images into shards: tar files of a size that disks and networks like."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from flowmatch.data.conditions import LABEL
from flowmatch.data.dataset import Dataset
from flowmatch.data.pixels import encode_png
from flowmatch.data.source import FileSource
from flowmatch.data.tar import CLASS, Members, read_headers, write_durably, write_tar
from flowmatch.data.tarsource import write_index
from flowmatch.randomness import keyed_generator
from flowmatch.room import require_writable
from flowmatch.tensors import to_uint8

_JOB = ".packing.json"
"""Says of an unfinished folder what is being put into it."""

Progress = Callable[[int], object]
"""Called with how many more images are in finished shards."""


class Originals(Protocol):
    """Encoded images with their names and labels, by index."""

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of the classes; None without labels."""
        ...

    def __len__(self) -> int: ...

    def members(self, index: int) -> Members:
        """The files of a sample by their suffix."""
        ...

    def stamp(self) -> str:
        """What all of them are: 12 hexadecimal digits."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files as they are.

    Args:
        source: the files and their labels.
        classes: the names of the classes; None without labels.
    """

    source: FileSource
    classes: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.source)

    def members(self, index: int) -> Members:
        path = Path(self.source.name(index))
        content = path.read_bytes()
        if not content:
            raise ValueError(f"{path} is unreadable (0 bytes); replace or delete it")
        labels = self.source.labels
        label = None if labels is None else int(labels[index])
        return _members(path.suffix[1:].lower(), content, label, self.source.files[index])

    def stamp(self) -> str:
        return self.source.stamp()


@dataclass(frozen=True)
class Pixels:
    """The plain images of a data set, cropped and resized as its config says, as PNG.

    Args:
        dataset: its images.
    """

    dataset: Dataset

    @property
    def classes(self) -> Sequence[str] | None:
        """The classes have numbers alone."""
        count = self.dataset.num_classes
        return None if count is None else [str(k) for k in range(count)]

    def __len__(self) -> int:
        return len(self.dataset)

    def members(self, index: int) -> Members:
        batch = self.dataset.raw(torch.tensor([index]), None)
        image = batch.x1 if batch.x1.dtype == torch.uint8 else to_uint8(batch.x1)
        label = int(batch.cond[LABEL]) if LABEL in batch.cond else None
        return _members("png", encode_png(image[0]), label, str(index))

    def stamp(self) -> str:
        return self.dataset.identity()


def pack(
    images: Originals,
    folder: Path,
    *,
    shard_size: int,
    workers: int,
    progress: Progress = lambda done: None,
) -> int:
    """Write images as shards and their index into a folder; how many shards there are.

    The images come in a shuffled order, which is always the same: neighbours in a shard have
    nothing in common, so that a stream of neighbours is a fair draw. A shard appears whole or not
    at all; called again after a kill, it goes on with the shards that are missing or damaged.

    Args:
        images: what is written.
        folder: where to; it is empty, or holds the same job, finished or not.
        shard_size: images a shard.
        workers: threads that read and write.
        progress: told when shards are finished.
    Raises:
        ValueError: the folder holds something else, or an image cannot be read.
    """
    job = {"images": images.stamp(), "count": len(images), "shard_size": shard_size}
    _claim(folder, job)
    order = torch.randperm(len(images), generator=keyed_generator("shards"))
    shards = {f"shard-{k:06d}.tar": own for k, own in enumerate(torch.split(order, shard_size))}

    def written(name: str) -> np.ndarray:
        path, own = folder / name, shards[name].tolist()
        found = _rows(path)
        if found is None or len(found) != len(own):
            write_tar(path, ((f"{index:08d}", images.members(index)) for index in own))
            found = _rows(path)
        assert found is not None  # as it has just been written
        return found

    found = {}
    with ThreadPoolExecutor(workers) as pool:
        for name, rows in zip(shards, pool.map(written, shards), strict=True):
            found[name] = rows
            progress(len(rows))
    write_index(folder, found, images.classes)
    return len(shards)


def _rows(path: Path) -> np.ndarray | None:
    """Where the images of a shard lie; None for one that is missing or damaged."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            return read_headers(file, str(path))
        except ValueError:
            return None


def _claim(folder: Path, job: Mapping[str, Any]) -> None:
    """Note in a folder what is put into it; refuse one that holds anything else."""
    require_writable(folder)
    note = folder / _JOB
    try:
        known = json.loads(note.read_text()) if note.is_file() else None
    except ValueError:
        known = {}
    others = {path.name for path in folder.iterdir()} - {f".{_JOB}.partial"}  # of a kill
    if known is None and others:
        raise ValueError(
            f"{folder} is not empty; choose another folder for the shards, or clear it"
        )
    if known is not None and known != job:
        raise ValueError(
            f"{folder} holds shards of other images or of another size, or those images changed"
            " since; choose another folder, or remove it"
        )
    write_durably(note, (json.dumps(job) + "\n").encode())


def _members(suffix: str, content: bytes, label: int | None, name: str) -> Members:
    found = {suffix: content}
    if label is not None:
        found[CLASS] = str(label).encode()
    return found | {"json": json.dumps({"name": name, "label": label}).encode()}
