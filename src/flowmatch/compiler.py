"""What torch.compile needs of a machine, and where its work is kept from run to run."""

from __future__ import annotations

import os
import shutil

import torch

from flowmatch.caching import cache_dir


def prepare_compiler(asked_by: str) -> None:
    """Make sure that there is a compiler, and that what it makes is found again by later runs.

    Args:
        asked_by: the option that wants it, for the message.
    Raises:
        ValueError: no C++ compiler on a machine without a GPU.
    """
    names = (os.environ.get("CXX", "g++"), "clang++", "c++")
    if not torch.cuda.is_available() and not any(shutil.which(name) for name in names):
        raise ValueError(f"{asked_by} needs a C++ compiler such as g++; install one or leave out")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
