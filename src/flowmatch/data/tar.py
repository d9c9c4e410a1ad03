"""Tar files as WebDataset has them: the members of a sample share a name up to its first dot."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from flowmatch.data.files import EXTENSIONS

Members = Mapping[str, bytes]
"""The files of one sample by their suffix, in the order in which they are written."""

_USTAR = tarfile.USTAR_FORMAT

NO_LABEL = -1
CLASS = "cls"
"""The member that holds a sample's class, as digits."""


def write_tar(path: Path, samples: Iterable[tuple[str, Members]]) -> None:
    """Write samples, by their names, as a tar file, whole or not at all.

    Its bytes follow from the samples alone: members have no time and no owner.
    """
    with _durable(path) as file, tarfile.open(fileobj=file, mode="w", format=_USTAR) as tar:
        for key, members in samples:
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_durably(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, that survives a power failure from then on."""
    with _durable(path) as file:
        file.write(content)


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that gets its name when all of it is on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_headers(file: IO[bytes], name: str) -> np.ndarray:
    """Where the images of a tar file are: offset, size and label of each, [N, 3] int64.

    Only the headers are read, and the classes. The label is `NO_LABEL` without one.

    Args:
        file: open for reading, and able to seek.
        name: what to call it in a message.
    Raises:
        ValueError: it is no such tar file, or damaged.
    """
    rows: list[list[int]] = []
    key = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if (own := f"{folder}/{stem}") != key:
                    key = own
                    rows.append([0, -1, NO_LABEL])
                if f".{suffix.lower()}" in EXTENSIONS:
                    if rows[-1][1] >= 0:
                        raise ValueError(f"{key} has two images; a sample has one")
                    rows[-1][:2] = member.offset_data, member.size
                elif suffix == CLASS:
                    content = tar.extractfile(member)
                    assert content is not None
                    rows[-1][2] = _class(content.read(), member.name)
            if any(size < 0 for _, size, _ in rows):
                raise ValueError(f"a sample has no image ({' '.join(e[1:] for e in EXTENSIONS)})")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"the shard {name} is damaged ({error}); replace it") from None
    except ValueError as error:
        raise ValueError(f"the shard {name} cannot be used: {error}") from None
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _class(content: bytes, name: str) -> int:
    try:
        return int(content)
    except ValueError:
        raise ValueError(f"{name} holds {content[:20]!r}, not the number of a class") from None
