"""Where to look for a data set on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

FALLBACK = "FLOWMATCH_DATA"


def candidates(root: str) -> list[Path]:
    """Folders to look in: `root` (with ~ expanded), then the one that $FLOWMATCH_DATA names.

    The second is for the families whose layout is recognised, so that nothing else is taken for it.
    """
    roots = [root, os.environ.get(FALLBACK, "")]
    return [Path(r).expanduser().absolute() for r in roots if r]


def first_folder(root: str, below: Sequence[str]) -> Path | None:
    """The first of the folders `below` that exists in one of the `candidates` of `root`."""
    places = (base / name for base in candidates(root) for name in below)
    return next((place for place in places if place.is_dir()), None)


def looked_in(root: str) -> str:
    """Where a search went, to say so when it found nothing."""
    return " and in ".join(str(base) for base in candidates(root))
