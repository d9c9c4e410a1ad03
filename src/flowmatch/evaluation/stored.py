"""Samples that somebody stored: a folder of images, an npz file, or a parquet file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from flowmatch.data import Dataset, FileSource, MemoryArrays, MemoryImages, Source
from flowmatch.data.decoded import threads, unreadable
from flowmatch.data.errors import ImageError, listing, summary
from flowmatch.data.files import class_names, image_files, labelled_files
from flowmatch.data.rows import RowSource, image_column, labels_of, read_parquet
from flowmatch.room import require_memory

_OF_SAMPLE = re.compile(r"\d{5,}\.png")
_SAMPLE_KEYS = ("samples", "images", "arr_0")
_LABEL_KEYS = ("labels", "label", "arr_1")


@dataclass(frozen=True)
class Stored:
    """Samples as they were found.

    Args:
        x: uint8 [N, C, H, W], or float32 [N, *D]; float images are in [-1, 1] and may hold NaN.
        labels: [N] int64, or None.
        name: what to call them.
        record: what `flowmatch sample` wrote beside them, or None.
    """

    x: Tensor
    labels: Tensor | None
    name: str
    record: dict[str, Any] | None = None

    def dataset(self) -> Dataset:
        """The samples as a data set, to serve as a reference.

        Raises:
            ValueError: some are not finite, which no reference may be.
        """
        if self.x.dtype != torch.uint8:
            bad = int((~self.x.flatten(1).isfinite().all(1)).sum())
            if bad:
                raise ValueError(
                    f"{bad:,} of {len(self.x):,} samples of the reference {self.name} hold NaN or"
                    " infinite values; a reference must be whole: remove them at their source"
                )
            if self.x.ndim == 4:
                raise ValueError(
                    f"{self.name} holds images as {self.x.dtype}; store a reference as uint8 0..255"
                )
        classes = None if self.labels is None else int(self.labels.max()) + 1
        kind = MemoryImages if self.x.dtype == torch.uint8 else MemoryArrays
        return kind(self.x, self.labels, num_classes=classes)


def load_stored(path: Path) -> Stored:
    """Read a folder of images, an npz or a parquet file, whole.

    Raises:
        ValueError: nothing there, not images, mixed sizes, or values in another range.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(f"there is no folder or file {path}")
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    raise ValueError(
        f"{path} is no folder of images, .npz or .parquet file, so it cannot be evaluated"
    )


def _folder(folder: Path) -> Stored:
    record = _record(folder)
    if record is not None and (folder / "samples.npz").is_file():
        stored = _npz(folder / "samples.npz")
        return Stored(stored.x, stored.labels, str(folder), record)
    if record is not None:  # our own folders hold a contact sheet beside the samples
        files = sorted(p.name for p in folder.iterdir() if _OF_SAMPLE.fullmatch(p.name))
        source = FileSource(folder, files, _classes_of(files, record))
    elif image_files(folder, recursive=False) or not class_names(folder):
        source = FileSource(folder, image_files(folder, recursive=False))
    else:
        source = labelled_files(folder, class_names(folder))
    if not len(source):
        other = [p.name for p in sorted(folder.iterdir())]
        found = f"it holds {listing(other)}" if other else "it is empty"
        raise ValueError(f"there are no images in {folder}: {found}")
    return Stored(_decode(source), source.labels, str(folder), record)


def _record(folder: Path) -> dict[str, Any] | None:
    """The sampling.json that `flowmatch sample` leaves beside its images."""
    path = folder / "sampling.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is damaged; remove it, or draw the samples again") from None
    return found if isinstance(found, dict) else None


def _classes_of(files: Sequence[str], record: dict[str, Any]) -> list[int] | None:
    """The classes that our own samples were asked for: one for all, or some in turn."""
    if dealt := record.get("dealt"):
        return [dealt[int(f.split(".")[0]) % len(dealt)] for f in files]
    classes, label = record.get("classes"), record.get("label")
    if classes is None:
        return None
    return [int(f.split(".")[0]) % classes if label is None else label for f in files]


def _parquet(path: Path) -> Stored:
    rows = read_parquet([path])
    column = image_column(rows, None, str(path))
    labels = None
    if "label" in rows.column_names:
        labels, _ = labels_of(rows, "label", None, str(path))
    source = RowSource(rows, column, labels, str(path))
    return Stored(_decode(source), labels, str(path))


def _decode(source: Source) -> Tensor:
    """All images of a source, which must be of one size: uint8 [N, C, H, W].

    A set of grey and colour images becomes colour, which loses nothing.
    """
    with ThreadPoolExecutor(threads()) as pool:
        heads = list(pool.map(_attempt(source, _head), range(len(source))))
    _refuse_broken(heads)
    sizes = Counter(size for size, _ in heads)
    if len(sizes) > 1:
        found = ", ".join(f"{n:,} of {w}x{h}" for (w, h), n in sizes.most_common(4))
        rare = min(sizes, key=lambda s: sizes[s])
        example = source.name(next(i for i, (size, _) in enumerate(heads) if size == rare))
        raise ValueError(
            f"the images differ in size ({found}; e.g. {example}): one number over several sizes"
            " means nothing; separate them, or resize them all at their source"
        )
    (width, height), channels = next(iter(sizes)), max(c for _, c in heads)
    images = np.empty((len(source), channels, height, width), np.uint8)
    require_memory(images.nbytes, f"{len(source):,} images")

    def decode(source: Source, index: int) -> None:
        with source.image(index) as image:
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
        images[index] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    with ThreadPoolExecutor(threads()) as pool:
        _refuse_broken(list(pool.map(_attempt(source, decode), range(len(source)))))
    return torch.from_numpy(images)


def _head(source: Source, index: int) -> tuple[tuple[int, int], int]:
    """Size and channels of an image, from its header alone."""
    with source.image(index) as image:
        if image.mode in ("RGBA", "LA", "PA"):
            raise ImageError(
                source.name(index),
                image.mode,
                problem="partly transparent",
                remedy="flatten it onto a background",
            )
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        size = image.size[::-1] if turned else image.size
        return size, 1 if image.mode in ("L", "1", "I", "I;16") else 3


def _attempt(source: Source, do: Callable[[Source, int], Any]) -> Callable[[int], Any]:
    """`do` for an index, with the error as its result where the image cannot be read."""

    def attempt(index: int) -> Any:
        try:
            return do(source, index)
        except ImageError as error:
            return error
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error ...
            return unreadable(source, index, error)

    return attempt


def _refuse_broken(results: Sequence[Any]) -> None:
    errors = [r for r in results if isinstance(r, ImageError)]
    if errors:
        raise ValueError(summary(errors))


def _npz(path: Path) -> Stored:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files if k in _SAMPLE_KEYS + _LABEL_KEYS}
            names = archive.files
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as npz: {str(error).splitlines()[0]}") from None
    found = [arrays[k] for k in _SAMPLE_KEYS if k in arrays]
    if not found:
        raise ValueError(
            f"{path} holds {listing(names) or 'nothing'}; expected an array named"
            f" {', '.join(_SAMPLE_KEYS)}"
        )
    labels = next((arrays[k] for k in _LABEL_KEYS if k in arrays), None)
    samples = found[0]
    if samples.ndim < 2 or not len(samples):
        raise ValueError(f"{path} holds an array of shape {samples.shape}; expected [N, ...]")
    kept = None
    if labels is not None and labels.size:
        if labels.shape != (len(samples),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"the labels of {path} have shape {labels.shape} of {labels.dtype}; expected one"
                f" integer for each of {len(samples):,} samples"
            )
        kept = torch.from_numpy(labels.astype(np.int64))
        if int(kept.min()) < 0:
            raise ValueError(f"the labels of {path} go down to {int(kept.min())}; count from 0")
    return Stored(_as_samples(samples, path), kept, str(path))


def _as_samples(array: np.ndarray, path: Path) -> Tensor:
    """uint8 [N, C, H, W] images, float32 images in [-1, 1], or float32 [N, *D] arrays."""
    if array.ndim == 4:
        array = _channels_first(array, path)
    if array.dtype == np.uint8 and array.ndim == 4:
        return torch.from_numpy(np.ascontiguousarray(array))
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}; images are uint8 [N, H, W, C] from"
            " 0 to 255 or float in [-1, 1], other data is float"
        )
    values = torch.from_numpy(array.astype(np.float32))
    finite = values[values.isfinite()]
    if array.ndim == 4 and finite.numel():
        low, high = float(finite.min()), float(finite.max())
        if high > 2 or low < -2 or (low >= 0 and high <= 1):
            raise ValueError(
                f"the float images of {path} run from {low:.3g} to {high:.3g}, but float images are"
                " in [-1, 1]; rescale them, or store uint8 from 0 to 255"
            )
    return values


def _channels_first(array: np.ndarray, path: Path) -> np.ndarray:
    if array.shape[-1] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    if array.shape[1] in (1, 3):
        return array
    raise ValueError(
        f"images of {path} have shape {array.shape[1:]}; expected [H, W, C] with 1 channel (grey)"
        " or 3 (RGB)"
    )
