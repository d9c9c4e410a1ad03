"""Tensors in a file, or in shards of it: one for each process, with the rows that it has.

    model.safetensors                              or
    model/shard-00001-of-00004.safetensors  ...    each with some rows of every tensor

The shards are laid out as `torch.distributed.checkpoint` lays out safetensors: the header of each
says at which row its part of a tensor starts. So `dcp.load` with a `HuggingFaceStorageReader` reads
them too. There is no pickle in them, nor in what reads them here, and a shard is read by itself:
neither a process group nor the number of processes that wrote it matters.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowmatch.room import require_space, require_writable
from flowmatch.training.files import flush_folder, write_tensors
from flowmatch.training.weights import first_line

_LAYOUT, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
"""What torch.distributed.checkpoint calls them."""
_NAME = re.compile(r"shard-(\d{5})-of-(\d{5})\.safetensors")
EVERY_ROW = slice(None)


@dataclass(frozen=True)
class Shard:
    """One of the files that share the rows of tensors.

    Args:
        number: from 1.
        count: how many there are.
    """

    number: int
    count: int

    def write(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        starts: Mapping[str, int],
        header: Mapping[str, str],
    ) -> None:
        """Write what this shard has of the tensors of a file, and wait for the disk.

        Args:
            path: of the file that they would make, whose folder exists.
            tensors: the rows of each that lie here; one may be left out.
            starts: the first of these rows, by name; one that is left out is whole.
            header: what the file says of itself.
        """
        folder = path.with_suffix("")
        folder.mkdir(exist_ok=True)
        offsets = {
            name: {_OFFSETS: [starts.get(name, 0), *[0] * (value.ndim - 1)][: value.ndim]}
            for name, value in tensors.items()
        }
        file = folder / f"shard-{self.number:05d}-of-{self.count:05d}.safetensors"
        write_tensors(file, tensors, {**header, _LAYOUT: json.dumps(offsets)})
        flush_folder(folder)


def files_of(path: Path) -> list[Path]:
    """The file at a path, or its shards in their order.

    Raises:
        ValueError: there is neither, or a shard is missing.
    """
    if path.is_file():
        return [path]
    named = {file.name: file for file in path.with_suffix("").glob("shard-*.safetensors")}
    found = {m: named[m[0]] for name in sorted(named) if (m := _NAME.fullmatch(name))}
    if not found:
        raise ValueError(f"there is no weights file at {path}")
    counts = {int(m[2]) for m in found}
    if counts != {len(found)}:
        raise ValueError(
            f"{path.with_suffix('')} has {len(found)} of {max(counts)} shards; a checkpoint needs"
            " all of them"
        )
    return [*found.values()]


def is_stored(path: Path) -> bool:
    """Whether there is a file at a path, or any shard of it."""
    sharded = path.suffix == ".safetensors" and path.with_suffix("").is_dir()
    return path.is_file() or (sharded and any(path.with_suffix("").glob("shard-*.safetensors")))


class Stored:
    """The tensors of a file or of its shards, read when and as far as they are asked for.

    Args:
        path: of the file, whether it is there in one piece or in shards.
    Raises:
        ValueError: there is no such file, a shard is missing, or one is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, str] = {}
        self.shapes: dict[str, list[int]] = {}
        self._parts: dict[str, list[tuple[int, int, Any]]] = {}  # rows from, to; file
        for file in files_of(path):
            self._open(file)
        for name, parts in self._parts.items():
            parts.sort(key=lambda part: part[0])
            ends = [0, *(stop for _, stop, _ in parts)]
            if [start for start, _, _ in parts] != ends[:-1]:
                raise ValueError(f"{path.with_suffix('')} lacks rows of {name}; it is damaged")
            if self.shapes[name]:
                self.shapes[name][0] = ends[-1]

    def read(self, name: str, rows: slice = EVERY_ROW) -> Tensor:
        """A tensor, or some of its rows, on the CPU."""
        parts = self._parts[name]
        if not self.shapes[name]:
            whole: Tensor = parts[0][2].get_tensor(name)
            return whole
        first, last, _ = rows.indices(self.shapes[name][0])
        read = [
            file.get_slice(name)[max(first, start) - start : min(last, stop) - start]
            for start, stop, file in parts
            if start < last and first < stop
        ]
        if not read:
            read = [parts[0][2].get_slice(name)[:0]]
        return read[0] if len(read) == 1 else torch.cat(read)

    def _open(self, file: Path) -> None:
        try:
            opened: Any = safe_open(file, "pt")  # checks the length against the header
            header = dict(opened.metadata() or {})
            layout = json.loads(header.pop(_LAYOUT, "{}"))
            starts = {name: (said[_OFFSETS] or [0])[0] for name, said in layout.items()}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} cannot be read as weights, it may be truncated: {first_line(error)}"
            ) from None
        self.header = self.header or header
        for name in opened.keys():  # noqa: SIM118  (no mapping)
            shape = opened.get_slice(name).get_shape()
            start = starts.get(name, 0)
            stop = start + shape[0] if shape else 0
            self.shapes.setdefault(name, shape)
            self._parts.setdefault(name, []).append((start, stop, opened))


def whole_file(path: Path) -> Path:
    """A weights file, put together from its shards where it is not there in one piece.

    Several processes may do so at once: all of them write the same bytes.

    Raises:
        ValueError: it is in shards that cannot be read, or the folder cannot be written to or has
            no room for it.
    """
    if path.is_file() or not is_stored(path):
        return path
    stored = Stored(path)
    require_writable(path.parent)
    size = sum(file.stat().st_size for file in files_of(path))
    require_space(path.parent, size, f"the shards of {path.name}, put together,")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        write_tensors(partial, {name: stored.read(name) for name in stored.shapes}, stored.header)
        os.replace(partial, path)
    flush_folder(path.parent)
    return path
