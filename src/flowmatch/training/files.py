"""Files that are there whole or not at all, and are on the disk when a function returns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file, the same bytes for the same content, and wait for the disk."""

    def write(path: Path) -> None:
        save_file(dict(tensors), path, dict(header))
        _sort_header(path)

    write_durably(path, write)


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file and wait until it is on the disk."""
    write(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Wait until the names of the files in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sort_header(path: Path) -> None:
    """Order what a safetensors file says of itself: the library writes it in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(size))
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))
