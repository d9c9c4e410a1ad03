"""Images in shards, as `flowmatch shard` makes them, or any WebDataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.decoded import decode_all
from flowmatch.data.images import ImageData
from flowmatch.data.lanes import Streaming
from flowmatch.data.storage import is_local, open_store
from flowmatch.data.streamed import StreamedImages
from flowmatch.data.tarsource import ShardIndex, TarSource, labels_known, read_index
from flowmatch.data.transforms import AdmCentre, AdmRandom, ShortSide

_CROPS = {"center": ShortSide, "adm": AdmCentre, "adm_random": AdmRandom}


@dataclass(frozen=True, kw_only=True)
class Shards(ImageData):
    """Images in tar files: of a disk, or a store that is read as the training goes on.

    The shards to train on are in `root/train` if that exists, else in `root`; those to test on in
    `root/test` or `root/val`. Those without an index beside them are looked through once.
    For the other fields see `ImageData`.

    Args:
        root: the folder, or its URL (s3://..., hf://datasets/...).
        flip: mirror half of the training images left to right.
        crop: "center": the short side is resized to fit, the rest cut off, as of `ImageFolder`;
            "adm" and "adm_random": the centre and the random crops of `ImageNet`.
        labels: take the classes along, if there are any.
        num_classes: how many classes there are; None asks the index, or the labels.
        stream: read the shards as the training goes on, and shuffle them so; None does so with a
            set that does not fit in `memory_gib`, and holds another in memory, in another order.
    """

    root: str
    flip: bool = False
    crop: Literal["center", "adm", "adm_random"] = "center"
    labels: bool = True
    num_classes: int | None = None
    stream: Streaming | None = None
    kind: Literal["shards"] = "shards"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.num_classes is not None and not self.labels:
            raise ValueError("num_classes goes with labels: true")

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        fs, root = open_store(self.root)
        folder = _folder(fs, root, split)
        index = read_index(fs, folder)
        num_classes = self._classes(index, folder)
        source = TarSource(fs, index, labelled=num_classes is not None)
        transform = _CROPS[self.crop](size=self.image_size, upsample=self.upsample)
        size = len(source) * self.channels * self.image_size**2
        fits = not transform.random and size <= self.memory_gib * 2**30
        if self.stream is None and fits:
            return decode_all(
                source,
                transform,
                channels=self.channels,
                num_classes=num_classes,
                flip=self.flip,
            )
        return StreamedImages(
            source,
            transform,
            channels=self.channels,
            num_classes=num_classes,
            streaming=self.stream or Streaming(),
            random_access=is_local(fs),
            flip=self.flip,
        )

    def _classes(self, index: ShardIndex, folder: str) -> int | None:
        """How many classes there are; None without labels."""
        if not self.labels or not labels_known(index):
            if self.num_classes is not None:
                raise ValueError(
                    f"num_classes is {self.num_classes}, but the images in {folder} have no class"
                    " (.cls); leave it out"
                )
            return None
        known = self.num_classes or index.num_classes
        if known is not None:
            return known
        found = np.unique(index.members[:, 2])
        if found.tolist() != list(range(len(found))):
            raise ValueError(
                f"the images in {folder} have {len(found)} different labels from {int(found[0])} to"
                f" {int(found[-1])}; renumber them without gaps, or set num_classes"
            )
        return len(found)


def _folder(fs: Any, root: str, split: Split) -> str:
    """Where the shards of a split are."""
    if not fs.isdir(root):
        raise ValueError(f"root {root} is not a folder; set it to the folder of the shards")
    held_out = next((f"{root}/{n}" for n in ("test", "val") if fs.isdir(f"{root}/{n}")), None)
    if split == "train":
        return f"{root}/train" if fs.isdir(f"{root}/train") else root
    if held_out is None:
        raise ValueError(f"no test images: {root} has neither a folder test nor val; add one")
    return held_out
