"""Where what is costly to compute is kept from one command to the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_dir() -> Path:
    """The cache: $FLOWMATCH_CACHE, else $XDG_CACHE_HOME/flowmatch, else ~/.cache/flowmatch."""
    if chosen := os.environ.get("FLOWMATCH_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flowmatch"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name and rename, so that nobody ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process at a time make a file; where no lock can be kept, all of them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the process ends, however it ends
    except OSError:
        yield
        return
    with lock:
        yield
