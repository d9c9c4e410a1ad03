"""Finding image files, and the classes that their folders stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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
