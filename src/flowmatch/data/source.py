"""Where encoded images come from: files, arrays, or (see `rows`) the rows of a table."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowmatch.data.dataset import digest
from flowmatch.data.errors import UnreadableImage


class Source(ABC):
    """Images by index, not yet decoded, and their labels ([N] int64, or None)."""

    labels: Tensor | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Open image `index`. Only its header needs to be read; the caller closes it."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call image `index` in a message: its path, or its row and table."""

    @abstractmethod
    def stamp(self) -> str:
        """What the images and labels are, without decoding any: 12 hexadecimal digits."""

    def is_empty(self, index: int) -> bool:
        """Whether image `index` holds no bytes, as far as that is cheap to see."""
        return False


class FileSource(Source):
    """Image files.

    Args:
        folder: the folder that `files` are relative to.
        files: paths of the images.
        labels: one class for each file, or None.
    """

    def __init__(
        self, folder: Path, files: Sequence[str], labels: Sequence[int] | None = None
    ) -> None:
        self.folder = folder
        self.files = files
        self.labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        return Image.open(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self.folder, self.files[index])

    def stamp(self) -> str:
        files = []
        for index, file in enumerate(self.files):
            try:
                stat = os.stat(self.name(index))
            except OSError as error:
                raise UnreadableImage(self.name(index), str(error.strerror)) from None
            files.append((file, stat.st_size, stat.st_mtime_ns))
        return digest(repr(files), self.labels)

    def is_empty(self, index: int) -> bool:
        try:
            return os.path.getsize(self.name(index)) == 0
        except OSError:
            return False


class ArraySource(Source):
    """Images that are already decoded.

    Args:
        images: [N, H, W] or [N, H, W, 3] uint8.
        labels: [N] int64, or None.
        origin: what to call them in a message.
    """

    def __init__(self, images: np.ndarray, labels: Tensor | None, origin: str) -> None:
        self.images = images
        self.labels = labels
        self.origin = origin

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def name(self, index: int) -> str:
        return f"image {index} of {self.origin}"

    def stamp(self) -> str:
        return digest(torch.tensor(self.images), self.labels)
