"""Images in shards: tar files, and an index of where in them each image lies."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowmatch.caching import alone, cache_dir, write_whole
from flowmatch.data.dataset import digest
from flowmatch.data.pieces import Opened, PieceSource, Sample
from flowmatch.data.rows import first_line
from flowmatch.data.storage import is_local, stamp_of
from flowmatch.data.tar import NO_LABEL, read_headers, write_durably

INDEX, MEMBERS = "shards.json", "members.npy"
FORMAT = "flowmatch-shards-1"
NEIGHBOURS = 64
"""Images of a piece: read in one go from a distant store. Part of what a seed means."""


@dataclass(frozen=True)
class ShardIndex:
    """What is known of shards without opening them.

    Args:
        paths: the tar files.
        counts: images of each.
        members: offset, size and label of each image, [N, 3] int64.
        num_classes: how many classes there are; None without labels, or where nobody says.
    """

    paths: Sequence[str]
    counts: Sequence[int]
    members: np.ndarray
    num_classes: int | None


def read_index(fs: Any, folder: str) -> ShardIndex:
    """The index beside the shards of a folder; foreign shards are looked through, once.

    Raises:
        ValueError: there are no shards, or they are damaged or not those of the index.
    """
    if fs.exists(f"{folder}/{INDEX}"):
        return _written(fs, folder)
    paths = sorted(fs.glob(f"{folder}/*.tar"))
    if not paths:
        raise ValueError(
            f"{folder} holds no shards (*.tar); make them with `flowmatch shard`, or set root to a"
            " folder that has some"
        )
    key = digest(FORMAT, *(stamp_of(fs, path) for path in paths))
    cached = cache_dir() / "shards" / f"{key}.npz"
    with alone(cached):
        if not cached.is_file():
            with ThreadPoolExecutor(16) as pool:
                found = list(pool.map(lambda path: headers_of(fs, path), paths))
            write_whole(cached, lambda partial: _save(partial, found))
    with np.load(cached) as stored:
        return ShardIndex(paths, stored["counts"].tolist(), stored["members"], None)


def headers_of(fs: Any, path: str) -> np.ndarray:
    """Offset, size and label of each image of a shard, [N, 3] int64; see `read_headers`."""
    with fs.open(path, "rb") as file:
        return read_headers(file, path)


def write_index(folder: Path, found: dict[str, np.ndarray], classes: Sequence[str] | None) -> None:
    """Write the index beside finished shards, its `shards.json` last.

    Args:
        folder: where they are.
        found: by the name of each shard, what `read_headers` says of it.
        classes: the names of the classes, or None without labels.
    """
    members = np.concatenate([*found.values()])
    array = io.BytesIO()
    np.save(array, members)
    write_durably(folder / MEMBERS, array.getvalue())
    shards = [
        {"name": name, "count": len(rows), "bytes": (folder / name).stat().st_size}
        for name, rows in found.items()
    ]
    content = {"format": FORMAT, "count": len(members), "classes": classes, "shards": shards}
    write_durably(folder / INDEX, (json.dumps(content, indent=1) + "\n").encode())


def _written(fs: Any, folder: str) -> ShardIndex:
    """The index that `write_index` wrote, if the shards are still those."""
    try:
        content = json.loads(fs.cat_file(f"{folder}/{INDEX}"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        names = [shard["name"] for shard in content["shards"]]
        counts = [int(shard["count"]) for shard in content["shards"]]
        sizes = [int(shard["bytes"]) for shard in content["shards"]]
        if is_local(fs):
            members = np.load(f"{folder}/{MEMBERS}", mmap_mode="r")
        else:
            with fs.open(f"{folder}/{MEMBERS}", "rb") as file:
                members = np.load(file)
        if members.shape != (sum(counts), 3):
            raise ValueError(f"{MEMBERS} has the shape {members.shape}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the index {folder}/{INDEX} cannot be read ({error}); remove it and make it again with"
            " `flowmatch shard`"
        ) from None
    there = {os.path.basename(f["name"]): f["size"] for f in fs.ls(folder, detail=True)}
    for name, size in zip(names, sizes, strict=True):
        if there.get(name) != size:
            has = f"has {there[name]:,} bytes" if name in there else "is missing"
            raise ValueError(
                f"the shard {folder}/{name} {has}, but {INDEX} says {size:,} bytes; copy it anew,"
                " or make it again with `flowmatch shard`"
            )
    classes = content["classes"]
    paths = [f"{folder}/{name}" for name in names]
    return ShardIndex(paths, counts, members, None if classes is None else len(classes))


class TarSource(PieceSource):
    """The images of shards, read by their place; a piece is a few neighbours of one shard.

    Of a local disk, every image is read by itself when it is wanted, of others the whole piece.

    Args:
        fs: the file system.
        index: what is known of the shards.
        labelled: whether the images come with classes.
    """

    def __init__(self, fs: Any, index: ShardIndex, *, labelled: bool) -> None:
        starts = [
            (shard, start, min(NEIGHBOURS, count - start))
            for shard, count in enumerate(index.counts)
            for start in range(0, count, NEIGHBOURS)
        ]
        labels = None
        if labelled:
            labels = torch.from_numpy(np.array(index.members[:, 2]))
        super().__init__(fs, [count for _, _, count in starts], labels)
        self._index, self._starts = index, starts
        self._before = np.cumsum([0, *index.counts])

    def open(self, piece: int) -> Opened:
        shard, start, count = self._starts[piece]
        path, first = self._index.paths[shard], int(self._before[shard]) + start
        members = np.array(self._index.members[first : first + count])
        try:
            read = self._reader(path, members)
        except Exception as error:  # of the disk or of the store: many classes
            raise ValueError(
                f"the shard {path} cannot be read ({first_line(error)}); if it is there, try again"
            ) from None

        def sample(row: int) -> Sample:
            offset, size, label = members[row].tolist()
            content = read(offset, size)
            if len(content) != size:
                raise ValueError(f"the shard {path} is damaged (it is cut short); replace it")
            return Sample(content, label)

        return sample

    def name(self, index: int) -> str:
        shard = int(np.searchsorted(self._before, index, side="right")) - 1
        return f"image {index - int(self._before[shard])} of {self._index.paths[shard]}"

    def stamp(self) -> str:
        paths = self._index.paths
        files = [stamp_of(self._fs, path) for path in paths]
        return digest(*files, torch.from_numpy(np.array(self._index.members)))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_files"}

    def _reader(self, path: str, members: np.ndarray) -> Any:
        """Gives the bytes at (offset, size)."""
        if is_local(self._fs):
            file = self._files(path)
            return lambda offset, size: os.pread(file.fileno(), size, offset)
        begin, end = int(members[0, 0]), int(members[-1, 0] + members[-1, 1])
        content = self._fs.cat_file(path, start=begin, end=end)
        return lambda offset, size: content[offset - begin : offset - begin + size]

    @cached_property
    def _files(self) -> Any:
        # unbuffered and read by offset alone, so that processes may share them
        return lru_cache(maxsize=512)(lambda path: open(path, "rb", buffering=0))


def labels_known(index: ShardIndex) -> bool:
    """Whether every image of the shards has a label.

    Raises:
        ValueError: only some do.
    """
    without = int((index.members[:, 2] == NO_LABEL).sum())
    if 0 < without < len(index.members):
        raise ValueError(
            f"{without:,} of {len(index.members):,} images in {os.path.dirname(index.paths[0])}"
            f" have no class (.cls); give each one, or set labels: false"
        )
    return not without


def _save(partial: Path, found: Sequence[np.ndarray]) -> None:
    with partial.open("wb") as file:
        np.savez(file, counts=[len(rows) for rows in found], members=np.concatenate(found))
