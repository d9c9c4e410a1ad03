"""Where the parquet files of a split are: a disk, any store by its URL, or the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowmatch.data.rows import first_line
from flowmatch.data.storage import is_url, open_store


def find_files(path: str, name: str | None, split: str, *, alone: bool) -> tuple[Any, list[str]]:
    """The file system and the sorted parquet files of a split.

    Args:
        path: a parquet file or a folder of such whose names begin with their split, as a path or a
            URL; or a data set of the hub.
        name: configuration of a data set of the hub that has several.
        split: which split.
        alone: whether a single file, or a folder whose files name no split, is this one.
    Raises:
        ValueError: there are no such files.
    """
    local = Path(path).expanduser().absolute()
    if not is_url(path) and not local.exists():
        if path.endswith(".parquet") or path.startswith((".", "/", "~")):
            raise ValueError(f"path {local} does not exist; set it to a parquet file or a folder")
        return _of_hub(path, name, split)
    fs, base = open_store(path)
    try:
        if path.endswith(".parquet"):
            files = [base] if alone and fs.exists(base) else []
        else:
            places = (base, f"{base}/data")
            files = [f for place in places for f in fs.glob(f"{place}/{split}*.parquet")]
            files = files or (fs.glob(f"{base}/*.parquet") if alone else [])
    except Exception as error:  # of the store: connection, permission
        raise ValueError(f"cannot look into {path} ({first_line(error)})") from None
    if not files:
        raise ValueError(
            f"{path} has no {split}*.parquet; add it, or use kind: shards for tar files"
        )
    return fs, sorted(files)


def _of_hub(path: str, name: str | None, split: str) -> tuple[Any, list[str]]:
    """The files that the hub has for a split, as `datasets` finds them; nothing is downloaded."""
    import datasets

    try:
        files = datasets.load_dataset_builder(path, name).config.data_files
        found = sorted(str(file) for file in (files or {}).get(split, []))
    except Exception as error:  # connection, permission, missing set: many classes
        raise ValueError(
            f"cannot look up {path!r} on the Hugging Face hub ({first_line(error)}); check the"
            " name and the connection, or give a local parquet file"
        ) from None
    if not found:
        known = ", ".join(map(str, files or {})) or "none"
        raise ValueError(f"{path!r} has no split {split!r} on the hub; it has {known}")
    if any(not file.endswith(".parquet") for file in found):
        raise ValueError(
            f"the split {split!r} of {path!r} is not in parquet files ({found[0]}); leave out"
            " stream to download it, or for tar files use kind: shards with their hf:// URL"
        )
    fs, _ = open_store(found[0])
    return fs, [open_store(file)[1] for file in found]
