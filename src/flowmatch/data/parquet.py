"""Images in parquet files that are read a row group at a time, on a disk or in a distant store."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any

from flowmatch.caching import cache_dir, write_whole
from flowmatch.data.dataset import digest
from flowmatch.data.pieces import Opened, PieceSource, Sample
from flowmatch.data.rows import first_line, image_column, known_column
from flowmatch.data.storage import is_local, stamp_of

_FORMAT = "flowmatch-row-groups-1"
_MOST_FILES = 256  # whose footers a process keeps


class ParquetSource(PieceSource):
    """The encoded images in one column of parquet files; a piece is a row group.

    Args:
        fs: the file system.
        paths: the files, all with the same columns.
        image: column of the images; None takes the one of image type, or image, or img.
        label: column of integer classes, or None.
        origin: what to call the files together in a message.
    Raises:
        ValueError: a file is no parquet, or the columns are not there.
    """

    def __init__(
        self, fs: Any, paths: Sequence[str], *, image: str | None, label: str | None, origin: str
    ) -> None:
        self._paths = list(paths)
        self._groups = [
            (file, group, rows)
            for file, groups in enumerate(_row_groups(fs, self._paths))
            for group, rows in enumerate(groups)
            if rows
        ]
        if not self._groups:
            raise ValueError(f"{origin} holds no rows; give a path or a split that does")
        super().__init__(fs, [rows for _, _, rows in self._groups])
        schema = self._file(self._groups[0][0]).schema_arrow
        named = SimpleNamespace(features=_features(schema))
        self.column, self.label = image_column(named, image, origin), label
        nested = str(schema.field(self.column).type).startswith("struct")
        self._columns = [f"{self.column}.bytes" if nested else self.column]
        self.classes: int | None = None
        if label is not None:
            known_column(named, label, "label_column", origin)
            kind = str(schema.field(label).type)
            if not kind.startswith(("int", "uint")):
                raise ValueError(
                    f"label column {label!r} of {origin} holds no integers ({kind}); give each row"
                    " an integer class from 0, or drop label_column"
                )
            self.classes = getattr(named.features[label], "num_classes", None)
            self._columns.append(label)

    def open(self, piece: int) -> Opened:
        number, group, rows = self._groups[piece]
        file = self._file(number)
        try:
            table = file.read_row_group(group, columns=self._columns, use_threads=False)
        except Exception as error:  # of arrow, of the store, or a column that this file lacks
            raise _damaged(self._paths[number], error) from None
        if table.num_rows != rows or {c.partition(".")[0] for c in self._columns} - {
            *table.column_names
        }:
            raise _damaged(self._paths[number], "its rows or columns are not those of the others")
        images = table.column(self.column).combine_chunks()
        if str(images.type).startswith("struct"):
            images = images.field("bytes")
        labels = None if self.label is None else table.column(self.label)

        def sample(row: int) -> Sample:
            label = -1 if labels is None else labels[row].as_py()
            return Sample(images[row].as_py() or b"", -1 if label is None else label)

        return sample

    def name(self, index: int) -> str:
        piece, row = self.place(index)
        number, group, _ = self._groups[piece]
        before = sum(r for n, g, r in self._groups[max(piece - group, 0) : piece] if n == number)
        return f"row {before + row} of {self._paths[number]}"

    def stamp(self) -> str:
        files = [stamp_of(self._fs, path) for path in self._paths]
        return digest(*files, self.column, self.label)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_kept"}

    def _forget(self) -> None:
        super()._forget()
        self.__dict__.pop("_kept", None)  # a file that a parent opened is not to be shared

    def _file(self, number: int) -> Any:
        return self._kept(self._paths[number], threading.get_ident())

    @cached_property
    def _kept(self) -> Any:
        # one a thread: a reader is not made for several at a time
        return lru_cache(maxsize=_MOST_FILES)(lambda path, thread: open_parquet(self._fs, path))


def open_parquet(fs: Any, path: str) -> Any:
    """A `pyarrow.parquet.ParquetFile` of a file in any store.

    Raises:
        ValueError: it cannot be read.
    """
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(
            path if is_local(fs) else fs.open(path, "rb"), pre_buffer=not is_local(fs)
        )
    except Exception as error:  # of arrow or of the store
        raise _damaged(path, error) from None


def _row_groups(fs: Any, paths: Sequence[str]) -> list[list[int]]:
    """The rows of each row group of each file, from their footers; kept in the cache."""
    cached = cache_dir() / "row_groups" / f"{_key(fs, paths)}.json"
    if cached.is_file():
        found: list[list[int]] = json.loads(cached.read_text())
        return found

    def of_file(path: str) -> list[int]:
        footer = open_parquet(fs, path).metadata
        return [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(of_file, paths))
    write_whole(cached, lambda partial: partial.write_text(json.dumps(found)))
    return found


def _key(fs: Any, paths: Sequence[str]) -> str:
    with ThreadPoolExecutor(16) as pool:
        stamps = list(pool.map(lambda path: stamp_of(fs, path), paths))
    return digest(_FORMAT, *paths, *stamps)


def _features(schema: Any) -> Any:
    """The columns with their types, as `datasets` knows them."""
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def _damaged(path: str, error: Exception | str) -> ValueError:
    why = error if isinstance(error, str) else first_line(error)
    return ValueError(f"cannot read {path} as parquet ({why}); replace the file")
