"""Where samples are kept: what the formats have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch.generation.drawing import Drawn
from flowmatch.generation.job import SampleJob


class Store(ABC):
    """A job's folder in one format. A process writes only samples that `missing` gave to it.

    Args:
        job: whose samples are kept.
    """

    def __init__(self, job: SampleJob) -> None:
        self.job, self.folder = job, job.save_dir

    @abstractmethod
    def missing(self, process: int, processes: int) -> list[int]:
        """The samples that one of so many processes has still to draw."""

    def pieces(self, drawn: Drawn) -> Iterator[Drawn]:
        """A batch in parts that threads write at the same time."""
        yield drawn

    @abstractmethod
    def write(self, drawn: Drawn) -> None:
        """Keep a piece; no kill leaves a broken file. Called from several threads at once."""

    def join(self) -> None:  # noqa: B027 (most formats have nothing left to do)
        """Put together what the processes wrote; called in one process, after all of them."""

    @abstractmethod
    def held(self) -> list[int]:
        """All samples in the folder, in increasing order, whoever asked for them."""

    @abstractmethod
    def first(self, count: int) -> Tensor:
        """The job's first samples as they were kept: uint8 [N, C, H, W] or float32 [N, *D]."""


def write_whole(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file that appears whole or not at all.

    Args:
        path: its name.
        content: its bytes.
        durable: also survive a power failure: wait for the disk before the file gets its name.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)


def as_image(pixels: np.ndarray) -> Tensor:
    """A decoded [H, W] or [H, W, C] image as uint8 [C, H, W]."""
    image = torch.from_numpy(np.array(pixels))
    return image[None] if image.ndim == 2 else image.permute(2, 0, 1)
