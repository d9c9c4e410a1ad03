"""Files that need not be on a local disk: paths, and URLs of any store that fsspec knows."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from flowmatch.data.dataset import digest


def is_url(path: str) -> bool:
    """Whether a path is a URL, such as hf://datasets/... or s3://..."""
    return "://" in path


def open_store(path: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        ValueError: the store is not known or cannot be reached.
    """
    import fsspec

    if not is_url(path):
        path = str(Path(path).expanduser().absolute())
    try:
        fs, inside = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(f"cannot open {path}: {error}") from None
    return fs, inside.rstrip("/")


def is_local(fs: Any) -> bool:
    """Whether a file system is the local disk."""
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def reopened(fs: Any) -> Any:
    """The same file system for this process: its connections cannot be shared with the parent."""
    return pickle.loads(pickle.dumps(fs))


def stamp_of(fs: Any, path: str) -> str:
    """What a file is, without reading it: its name, its size, and when it was written."""
    info = fs.info(path)
    marks = ("mtime", "ETag", "etag", "last_modified", "LastModified", "created")
    mark = next((str(info[name]) for name in marks if info.get(name)), "")
    return digest(path.rpartition("/")[2], str(info["size"]), mark)
