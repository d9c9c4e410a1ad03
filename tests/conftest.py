"""What the tests share: where real data may lie, and a seeded start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


def _beside(name: str) -> Path:
    return ROOT.parent / "shared" / name


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with `mnist/` and `cifar10-jpeg/` as parquet files."""
    path = Path(os.environ.get("FLOWMATCH_DATA") or _beside("data"))
    if not (path / "mnist").is_dir():
        pytest.skip(f"no data sets in {path}; set FLOWMATCH_DATA")
    return path


@pytest.fixture(scope="session")
def seed_checkpoints() -> Path:
    """Folder of checkpoints in the form that flow-matching-pytorch saves."""
    path = _beside("fixtures") / "seed-checkpoint"
    if not path.is_dir():
        pytest.skip(f"no reference checkpoints in {path}")
    return path
