"""Room on the disk and in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def require_memory(need: int, what: str) -> None:
    """Refuse what cannot fit into this machine, before it is tried."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise ValueError(
            f"{what} need about {need / 2**30:,.1f} GiB of memory, but this machine has"
            f" {have / 2**30:,.1f} GiB"
        )


def require_writable(folder: Path) -> None:
    """Make a folder and refuse one that nothing can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None


def require_space(folder: Path, need: int, what: str) -> None:
    """Refuse to start a job that the disk has no room for."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise ValueError(
            f"no space left: {what} need about {need / 2**20:,.1f} MiB, but {there} has"
            f" {free / 2**20:,.1f} MiB free"
        )
