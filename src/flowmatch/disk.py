"""Room on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path


def require_space(folder: Path, need: int, what: str) -> None:
    """Refuse to start a job that the disk has no room for."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise ValueError(
            f"no space left: {what} need about {need / 2**20:,.1f} MiB, but {there} has"
            f" {free / 2**20:,.1f} MiB free"
        )
