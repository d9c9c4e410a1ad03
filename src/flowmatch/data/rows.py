"""Images in the rows of a table: local parquet files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowmatch.data.dataset import digest
from flowmatch.data.errors import UnreadableImage
from flowmatch.data.source import Source

IMAGE_NAMES = ("image", "img")


class RowSource(Source):
    """The encoded images in one column of a `datasets.Dataset`, read from its memory map.

    Args:
        rows: the table.
        column: its column of encoded images: bytes, or the struct of bytes and path of the hub.
        labels: [N] int64, or None.
        origin: what to call the table in a message.
    """

    def __init__(self, rows: Any, column: str, labels: Tensor | None, origin: str) -> None:
        self.rows = rows
        self.column = column
        self.labels = labels
        self.origin = origin

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        # Straight from the arrow table: the row access of `datasets` costs more than the decoding.
        cell = self.rows.data.column(self.column)[index].as_py()
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if not cell:
            raise UnreadableImage(self.name(index), "0 bytes")
        return Image.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell)

    def name(self, index: int) -> str:
        return f"row {index} of {self.origin}"

    def stamp(self) -> str:
        # `datasets` keeps a hash of where a table came from and of all that was done to it
        return digest(self.rows._fingerprint, self.column, self.labels)


def read_parquet(files: Sequence[Path]) -> Any:
    """The rows of parquet files as one `datasets.Dataset`.

    Raises:
        ValueError: a file is not parquet, they differ in their columns, or hold no rows.
    """
    import datasets
    import pyarrow.parquet

    names = [str(file) for file in files]
    try:
        filled = [name for name in names if pyarrow.parquet.read_metadata(name).num_rows]
        with _quiet():
            if filled:
                return datasets.load_dataset("parquet", data_files={"rows": filled}, split="rows")
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise ValueError(
            f"cannot read {', '.join(names[:3])} as parquet ({first_line(error)});"
            " replace the file, or give another path"
        ) from None
    raise ValueError(f"{', '.join(names[:3])} holds no rows; replace it, or give another path")


def read_hub(path: str, name: str | None, split: str) -> Any:
    """The rows of one split of a data set of the Hugging Face hub, downloaded once.

    Raises:
        ValueError: no such data set or split, or no connection.
    """
    import datasets

    try:
        return datasets.load_dataset(path, name, split=split)
    except Exception as error:  # connection, permission, missing set or split: many classes
        raise ValueError(
            f"cannot load the split {split!r} of {path!r} from the Hugging Face hub"
            f" ({first_line(error)}); check the name and the connection, or give a local"
            " parquet file"
        ) from None


def find_parquet(base: Path, split: str, below: Sequence[str] = ("",)) -> list[Path]:
    """The parquet files of a split: `split.parquet`, or all that begin with its name, sorted.

    Looks in `base` and in the folders `below` it, each also in its subfolder `data`.
    """
    for folder in (base / name / data for name in below for data in ("", "data")):
        exact = folder / f"{split}.parquet"
        found = [exact] if exact.is_file() else sorted(folder.glob(f"{split}*.parquet"))
        if found:
            return found
    return []


def image_column(rows: Any, wanted: str | None, origin: str) -> str:
    """The column of images: the one asked for, or the only one, or one named image or img.

    Raises:
        ValueError: there is no such column, or more than one.
    """
    import datasets

    if wanted is not None:
        return known_column(rows, wanted, "image_column", origin)
    typed = [n for n, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    named = [n for n in IMAGE_NAMES if n in (typed or rows.features)]
    if named or len(typed) == 1:
        return (named or typed)[0]
    raise ValueError(
        f"{origin} has {'several columns' if typed else 'no column'} of images; set image_column"
        f" to one of {', '.join(rows.features)}"
    )


def known_column(rows: Any, column: str, key: str, origin: str) -> str:
    """`column`, if the table has it; else ValueError lists those that it has."""
    if column not in rows.features:
        raise ValueError(
            f"{key} is {column!r}, but {origin} has the columns {', '.join(rows.features)};"
            " name one of them"
        )
    return column


def labels_of(rows: Any, column: str, num_classes: int | None, origin: str) -> tuple[Tensor, int]:
    """The labels in a column, and how many classes there are.

    The number of classes is `num_classes`, else that of the column's ClassLabel type, else one
    above the highest label, where every class must then occur.

    Raises:
        ValueError: labels that are not integers, are missing, negative, or leave classes out.
    """
    cells = rows.data.column(column)
    if not str(cells.type).startswith(("int", "uint")) or cells.null_count:
        missing = f"{cells.null_count:,} empty cells" if cells.null_count else "no integers"
        raise ValueError(
            f"label column {column!r} of {origin} holds {missing} ({cells.type}); give each row an"
            " integer class from 0, or drop label_column"
        )
    labels = torch.from_numpy(cells.to_numpy().astype(np.int64))
    known = num_classes or getattr(rows.features[column], "num_classes", None)
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or (known is not None and high >= known):
        top = "up" if known is None else f"to {known - 1}"
        raise ValueError(
            f"label column {column!r} of {origin} runs from {low} to {high}; labels must count from"
            f" 0 {top}; renumber them, or drop label_column"
        )
    found = np.unique(labels.numpy()).size
    if known is None and found != high + 1:
        raise ValueError(
            f"label column {column!r} of {origin} has {found} different labels between 0 and"
            f" {high}; renumber them without gaps, or set num_classes: {high + 1}"
        )
    return labels, known or found


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets` for local files, which take no time worth showing."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def first_line(error: Exception) -> str:
    """What went wrong first, on one line."""
    cause = error.__cause__ or error
    return str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__
