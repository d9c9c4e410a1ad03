"""What MNIST and CIFAR-10 share: ten classes, one known size, and three places to come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.images import ImageData
from flowmatch.data.roots import FALLBACK, candidates, looked_in
from flowmatch.data.rows import (
    RowSource,
    find_parquet,
    image_column,
    known_column,
    labels_of,
    read_hub,
    read_parquet,
)
from flowmatch.data.source import ArraySource, Source
from flowmatch.data.transforms import ShortSide

NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class ClassicData(ImageData, ABC):
    """Base of the two: finds the images, in this order.

    1. Parquet files of the hub's columns: `{split}*.parquet` in `root`, `root/data`,
       `root/plain_text`, or in `root/NAME` (mnist, cifar10) with the same subfolders.
    2. The files that torchvision unpacks below `root`.
    3. With `download`, the Hugging Face hub.

    1 and 2 are tried below `root`, then below the folder that $FLOWMATCH_DATA names.

    Args:
        root: the folder to look in.
        download: take the set from the Hugging Face hub when it is not found on disk.
    """

    root: str = "data"
    download: bool = False

    native: ClassVar[int]
    folder: ClassVar[str]
    hub: ClassVar[str]
    unpacked: ClassVar[str]  # the folder below `root` that torchvision unpacks to

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_native(self.native)

    def _build(self, split: Split, *, flip: bool) -> Dataset:
        source = self._source(split)
        with source.image(0) as image:
            if image.size != (self.native, self.native):
                raise ValueError(
                    f"{source.name(0)} is {image.width}x{image.height}, but the images of"
                    f" {self.folder} are {self.native}x{self.native}; check root, or use"
                    " kind: hub for other data"
                )
        transform = ShortSide(size=self.image_size, upsample=self.upsample)
        return self._open(source, transform, num_classes=NUM_CLASSES, flip=flip)

    def _source(self, split: Split) -> Source:
        below = ("", "plain_text", self.folder, f"{self.folder}/plain_text")
        for base in candidates(self.root):
            if files := find_parquet(base, split, below):
                return _from_rows(read_parquet(files), str(files[0]))
            if (base / self.unpacked).is_dir():
                return self._unpacked(base, split)
        if self.download:
            return _from_rows(read_hub(self.hub, None, split), self.hub)
        raise ValueError(
            f"no {self.folder} ({split} split) found in {looked_in(self.root)}; set root (or"
            f" ${FALLBACK}) to a folder with {split}.parquet or torchvision's {self.unpacked}, or"
            f" set download: true to fetch {self.hub} from the Hugging Face hub"
        )

    def _unpacked(self, base: Path, split: Split) -> Source:
        """The files that torchvision unpacked, which it checks before it reads them."""
        place = base / self.unpacked
        try:
            found = self._torchvision()(str(base), train=split == "train", download=False)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
            raise ValueError(
                f"the files in {place} are incomplete or damaged ({error}); unpack them anew, or"
                " remove that folder and set download: true"
            ) from None
        images = found.data.numpy() if isinstance(found.data, torch.Tensor) else found.data
        labels = torch.as_tensor(found.targets, dtype=torch.int64)
        return ArraySource(images, labels, str(place))

    @staticmethod
    @abstractmethod
    def _torchvision() -> Callable[..., Any]:
        """The class of torchvision that reads the unpacked files."""


def _from_rows(rows: Any, origin: str) -> Source:
    column = known_column(rows, "label", "label column", origin)
    labels, _ = labels_of(rows, column, NUM_CLASSES, origin)
    return RowSource(rows, image_column(rows, None, origin), labels, origin)
