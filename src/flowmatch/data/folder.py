"""Any folder of images, with or without class subfolders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowmatch.data.columns import ColumnConfig, read_columns, stamp_columns
from flowmatch.data.conditions import LABEL, Values
from flowmatch.data.dataset import Dataset, Split, digest
from flowmatch.data.files import (
    EXTENSIONS,
    class_names,
    image_files,
    labelled_files,
    metadata_of,
)
from flowmatch.data.images import ConditionedImages
from flowmatch.data.source import FileSource
from flowmatch.data.transforms import ShortSide


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ConditionedImages):
    """Images below a folder: resized so that the short side fits, then cropped to the centre.

    The images to train on are in `root/train` if that exists, else in `root`; those to test on in
    `root/test` or `root/val`. Where that folder has subfolders, each is a class, numbered in the
    order of their names (those of the training images, for both splits). A folder of image files
    alone has no labels. Conditions are the columns of a `metadata.jsonl` beside the images of a
    split, see `metadata_of`. For the other fields see `ConditionedImages`.

    Args:
        root: the folder. $FLOWMATCH_DATA is not tried: any folder of images would pass for this.
        flip: mirror half of the training images left to right.
        labels: take subfolders as classes; if not, all images below are one unlabelled set.
    """

    root: str
    flip: bool = False
    labels: bool = True
    kind: Literal["folder"] = "folder"

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        source, classes = self.source(split)
        return self._open(
            source,
            ShortSide(size=self.image_size, upsample=self.upsample),
            num_classes=None if classes is None else len(classes),
            conditions=self._conditions(source, None),
            flip=self.flip,
        )

    def values(self, split: Split = "train", *, first: int | None = None) -> dict[str, Values]:
        source, _ = self.source(split)
        labels = source.labels
        named: dict[str, Values] = {} if labels is None else {LABEL: labels[:first]}
        return named | self._conditions(source, first)

    def stamps(self, split: Split = "train") -> dict[str, str]:
        source, _ = self.source(split)
        named = {} if source.labels is None else {LABEL: digest(source.labels)}
        if not self.conditions:
            return named
        return named | stamp_columns(*self._table(source))

    def _conditions(self, source: FileSource, first: int | None) -> dict[str, Values]:
        if not self.conditions:
            return {}
        return read_columns(*self._table(source), first=first)

    def _table(self, source: FileSource) -> tuple[Any, Mapping[str, ColumnConfig], str]:
        """The table of what the images are conditioned on, its columns, and what to call it."""
        table = metadata_of(source.folder, source.files)
        return table, self.conditions, f"{source.folder}/metadata.jsonl"

    def source(self, split: Split) -> tuple[FileSource, list[str] | None]:
        """The images of a split, and the names of the classes."""
        train = self._folder("train")
        folder = train if split == "train" else self._folder("test")
        named = self.labels and class_names(train)
        source = self._labelled(folder, train) if named else FileSource(folder, image_files(folder))
        if not len(source):
            raise ValueError(
                f"{folder} holds no images ({' '.join(e[1:] for e in EXTENSIONS)}); set root to a"
                " folder that does"
            )
        return source, class_names(train) if named else None

    def _labelled(self, folder: Path, train: Path) -> FileSource:
        if image_files(folder, recursive=False):
            raise ValueError(
                f"{folder} holds images outside class folders; move them into one, or set labels:"
                " false to take all images as one set without labels"
            )
        return labelled_files(folder, class_names(train))

    def _folder(self, split: Split) -> Path:
        """Where the images of a split are."""
        root = Path(self.root).expanduser().absolute()
        if not root.is_dir():
            raise ValueError(f"root {root} is not a folder; set it to the folder of the images")
        held_out = next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
        if (root / "train").is_dir():
            found = root / "train" if split == "train" else held_out
        else:
            found = root if split == "train" and held_out is None else held_out
            if split == "train" and held_out is not None:
                raise ValueError(
                    f"{root} has a folder {held_out.name} but no folder train; move the images to"
                    f" train on to {root / 'train'}"
                )
        if found is None:
            raise ValueError(
                f"no test images: {root} has neither a folder test nor a folder val; add one"
            )
        return found
