"""Finding image files, and the classes that their folders stand for."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowmatch.data.errors import listing
from flowmatch.data.source import FileSource

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")


def is_image(name: str) -> bool:
    """Whether a file name is that of an image; hidden files are not."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def image_files(folder: Path, *, recursive: bool = True) -> list[str]:
    """Paths of the images in `folder`, relative to it and sorted; hidden folders are passed by."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if recursive and not f.startswith(".")]
        inside = os.path.relpath(place, folder)
        found += [os.path.normpath(os.path.join(inside, f)) for f in files if is_image(f)]
    return sorted(found)


def class_names(folder: Path) -> list[str]:
    """The subfolders of `folder`, sorted, hidden ones left out: class k is the k-th of them."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def labelled_files(folder: Path, classes: Sequence[str]) -> FileSource:
    """The images below the class folders of `folder`, labelled by the place of each in `classes`.

    Raises:
        ValueError: `folder` has a class that is not in `classes`, or a class without images.
    """
    present = class_names(folder)
    if unknown := sorted(set(present) - set(classes)):
        raise ValueError(
            f"{folder} has class folders that the training images lack: {listing(unknown)};"
            " remove them, or add the classes to the training images"
        )
    files: list[str] = []
    labels: list[int] = []
    hollow = []
    for name in present:
        inside = image_files(folder / name)
        files += [f"{name}/{file}" for file in inside]
        labels += [classes.index(name)] * len(inside)
        hollow += [] if inside else [name]
    if hollow:
        raise ValueError(
            f"class folders of {folder} hold no images: {listing(hollow)}; remove or fill them"
        )
    return FileSource(folder, files, labels)


def metadata_of(folder: Path, files: Sequence[str]) -> Any:
    """What `folder/metadata.jsonl` says of image files, as an arrow table in their order.

    Each of its lines is a mapping with the `file_name` relative to `folder`, as the image folders
    of the Hugging Face hub have it. Cells of files that it does not name are empty.

    Raises:
        ValueError: there is no such file, or a line cannot be read.
    """
    import pyarrow

    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise ValueError(
            f"there is no {path}, which should give the conditions: a line an image such as"
            ' {"file_name": "a.png", "caption": "a red bird"}'
        )
    told: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {"file_name": ""}
            told[os.path.normpath(row.pop("file_name"))] = row
        except (ValueError, AttributeError, KeyError, TypeError):
            raise ValueError(
                f"line {number} of {path} is no JSON mapping with a file_name; correct it"
            ) from None
    rows = [told.get(os.path.normpath(file), {}) for file in files]
    names = dict.fromkeys(name for row in told.values() for name in row)
    try:
        return pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} mixes types in a column ({error}); correct it") from None
