"""Any set of images of the Hugging Face hub, or in parquet files of its form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from flowmatch.data.columns import read_columns, stamp_columns
from flowmatch.data.conditions import LABEL, Values
from flowmatch.data.dataset import Dataset, Split, digest
from flowmatch.data.hubfiles import find_files
from flowmatch.data.images import ConditionedImages
from flowmatch.data.lanes import Streaming
from flowmatch.data.parquet import ParquetSource
from flowmatch.data.rows import (
    RowSource,
    find_parquet,
    image_column,
    known_column,
    labels_of,
    read_hub,
    read_parquet,
)
from flowmatch.data.streamed import StreamedImages
from flowmatch.data.transforms import ShortSide


@dataclass(frozen=True, kw_only=True)
class Hub(ConditionedImages):
    """Images in a table: resized so that the short side fits, then cropped to the centre.

    For the other fields see `ConditionedImages`.

    Args:
        path: a data set of the hub ("uoft-cs/cifar10"), a parquet file (which then is the training
            split), or a folder of parquet files whose names begin with that of their split.
        name: configuration of a data set of the hub that has several.
        train_split: what its split to train on is called.
        test_split: what its split to test on is called.
        image_column: column of the images; None takes the one of image type, or image, or img.
        label_column: column of integer classes; None trains without labels.
        num_classes: how many classes there are; None asks the column.
        flip: mirror half of the training images left to right.
        stream: read the rows as the training goes on, and shuffle them so; `path` may then be a URL
            (s3://..., hf://...) too. None downloads the set and reads it from everywhere.
    """

    path: str
    name: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
    num_classes: int | None = None
    flip: bool = False
    stream: Streaming | None = None
    kind: Literal["hub"] = "hub"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.stream is not None and self.conditions:
            raise ValueError(
                "of a streamed set nothing but the class is known; leave out conditions, or stream"
            )

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        if self.stream is not None:
            return self._streamed(split, self.stream)
        rows, origin = self._rows(split)
        column = image_column(rows, self.image_column, origin)
        labels, num_classes = self._labels(rows, origin)
        return self._open(
            RowSource(rows, column, labels, origin),
            ShortSide(size=self.image_size, upsample=self.upsample),
            num_classes=num_classes,
            conditions=read_columns(rows.data, self.conditions, origin),
            flip=self.flip,
        )

    def values(self, split: Split = "train", *, first: int | None = None) -> dict[str, Values]:
        if self.stream is not None:
            return {}
        rows, origin = self._rows(split)
        labels, _ = self._labels(rows, origin)
        named: dict[str, Values] = {} if labels is None else {LABEL: labels[:first]}
        return named | read_columns(rows.data, self.conditions, origin, first=first)

    def stamps(self, split: Split = "train") -> dict[str, str]:
        if self.stream is not None:
            return {}
        rows, origin = self._rows(split)
        labels, _ = self._labels(rows, origin)
        named = {} if labels is None else {LABEL: digest(labels)}
        return named | stamp_columns(rows.data, self.conditions, origin)

    def _streamed(self, split: Split, streaming: Streaming) -> Dataset:
        called = self.train_split if split == "train" else self.test_split
        fs, files = find_files(self.path, self.name, called, alone=split == "train")
        source = ParquetSource(
            fs,
            files,
            image=self.image_column,
            label=self.label_column,
            origin=f"{self.path} ({called})",
        )
        num_classes = self.num_classes or source.classes
        if self.label_column is not None and num_classes is None:
            raise ValueError(
                f"label column {self.label_column!r} of {self.path} does not say how many classes"
                " there are, and a streamed set is not read to count them; set num_classes"
            )
        return StreamedImages(
            source,
            ShortSide(size=self.image_size, upsample=self.upsample),
            channels=self.channels,
            num_classes=num_classes if self.label_column is not None else None,
            streaming=streaming,
            random_access=False,
            flip=self.flip,
        )

    def _labels(self, rows: Any, origin: str) -> tuple[Tensor | None, int | None]:
        if self.label_column is None:
            return None, None
        known_column(rows, self.label_column, "label_column", origin)
        return labels_of(rows, self.label_column, self.num_classes, origin)

    def _rows(self, split: Split) -> tuple[Any, str]:
        """The table of a split, and what to call it."""
        rows, origin = self._table(self.train_split if split == "train" else self.test_split)
        if not len(rows):
            raise ValueError(f"{origin} holds no rows; give a path or a split that does")
        return rows, origin

    def _table(self, split: str) -> tuple[Any, str]:
        local = Path(self.path).expanduser().absolute()
        if local.is_file():
            if split != self.train_split:
                raise ValueError(
                    f"{local} is one file, the split {self.train_split!r}; to have a split"
                    f" {split!r}, set path to a folder with {split}.parquet"
                )
            return read_parquet([local]), str(local)
        if local.is_dir():
            files = find_parquet(local, split)
            if not files and split == self.train_split:
                files = sorted(local.glob("*.parquet"))
            if not files:
                raise ValueError(
                    f"{local} has no {split}*.parquet; add it, or use kind: folder for image files"
                )
            return read_parquet(files), str(local)
        if self.path.endswith(".parquet") or self.path.startswith((".", "/", "~")):
            raise ValueError(f"path {local} does not exist; set it to a parquet file or a folder")
        return read_hub(self.path, self.name, split), f"{self.path} ({split})"
