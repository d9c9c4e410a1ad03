"""Decoding images: all at once into memory, or batch by batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import torch
from PIL import ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info

from flowmatch.data.batch import Batch
from flowmatch.data.conditions import LABEL, Values, check_values, rows_of
from flowmatch.data.dataset import Dataset, digest
from flowmatch.data.errors import ImageError, UnreadableImage, summary
from flowmatch.data.memory import MemoryImages, check_labels
from flowmatch.data.pixels import to_channels
from flowmatch.data.source import Source
from flowmatch.data.transforms import Transform

CHUNK = 128  # images a task: large against the cost of a task, small against any data set
PROBES = 512  # images of a large set whose headers are read before training starts


class DecodedImages(Dataset):
    """Images that are decoded each time they are used: sets too large for memory, random crops.

    A batch decodes in a few threads, or in one inside a worker process (see `loading.stream`).

    Args:
        source: the encoded images.
        transform: makes each of them a square of the wanted size.
        channels: 1 (grey) or 3 (RGB).
        num_classes: how many classes there are; None exactly where the source has no labels.
        conditions: see `MemoryArrays`.
        flip: mirror an image left to right where its first uniform number is below 0.5.
    Raises:
        ValueError: labels or conditions that do not fit. Batches raise ImageError, which names the
            file.
    """

    in_memory: ClassVar[bool] = False

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        channels: int,
        num_classes: int | None = None,
        conditions: Mapping[str, Values] | None = None,
        flip: bool = False,
    ) -> None:
        check_labels(source.labels, num_classes, length=len(source))
        check_values(conditions or {}, length=len(source))
        self.source = source
        self.transform = transform
        self.num_classes = num_classes
        self.conditions = dict(conditions or {})
        labels = source.labels
        self.values = ({} if labels is None else {LABEL: labels}) | self.conditions
        self.flip = flip
        self.shape = (channels, transform.size, transform.size)

    def __len__(self) -> int:
        return len(self.source)

    def raw(self, indices: Tensor, uniforms: Tensor | None) -> Batch:
        indices = indices.cpu()
        images = self._decoded(self.source, indices.tolist(), uniforms)
        return Batch(images, rows_of(self.values, indices))

    def identity(self) -> str:
        return digest(self.source.stamp(), repr(self.transform), str(self.shape[0]))

    def _decoded(self, source: Source, indices: Sequence[int], uniforms: Tensor | None) -> Tensor:
        """Images of a source as uint8 [B, C, H, W], augmented as training wants them."""
        images = np.empty((len(indices), *self.shape), np.uint8)
        draws = [None] * len(indices) if uniforms is None else uniforms.tolist()

        def decode_into(slot: int, index: int, draw: list[float] | None) -> None:
            pixels = decode(source, index, self.transform, self.shape[0], draw)
            mirrored = self.flip and draw is not None and draw[0] < 0.5
            images[slot] = pixels[..., ::-1] if mirrored else pixels

        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(decode_into, range(len(indices)), indices, draws))
        return torch.from_numpy(images)


def decode(
    source: Source,
    index: int,
    transform: Transform,
    channels: int,
    uniforms: Sequence[float] | None = None,
) -> np.ndarray:
    """One image as uint8 [channels, size, size]; augmented if `uniforms` (4 numbers) are given.

    Raises:
        ImageError: it cannot be decoded, or is too small.
    """
    name = source.name(index)
    try:
        with source.image(index) as image:
            transform.check(name, image.size)
            ImageOps.exif_transpose(image, in_place=True)  # as the camera was held
            image = to_channels(image, channels)
            if uniforms is None:
                image = transform.plain(image)
            else:
                image = transform.augmented(image, uniforms)
            pixels = np.asarray(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error ...
        raise unreadable(source, index, error) from None
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_all(
    source: Source,
    transform: Transform,
    *,
    channels: int,
    num_classes: int | None = None,
    conditions: Mapping[str, Values] | None = None,
    flip: bool = False,
) -> MemoryImages:
    """Decode every image once, without augmentation, into a set held in memory as uint8.

    Raises:
        ValueError: one sentence about all images that cannot be used, naming the first of them.
    """
    check_labels(source.labels, num_classes, length=len(source))
    images = np.empty((len(source), channels, transform.size, transform.size), np.uint8)

    def decode_chunk(start: int) -> list[ImageError]:
        errors = []
        for index in range(start, min(start + CHUNK, len(source))):
            try:
                images[index] = decode(source, index, transform, channels)
            except ImageError as error:
                errors.append(error)
        return errors

    with ThreadPoolExecutor(threads()) as pool:
        errors = [e for part in pool.map(decode_chunk, range(0, len(source), CHUNK)) for e in part]
    if errors:
        raise ValueError(summary(errors))
    return MemoryImages(
        torch.from_numpy(images),
        source.labels,
        num_classes=num_classes,
        conditions=conditions,
        flip=flip,
    )


def probe(source: Source, transform: Transform) -> None:
    """Look for trouble in a large set at little cost: empty files, and the headers of a sample.

    Raises:
        ValueError: one sentence about the images found that cannot be used.
    """
    every = range(len(source))
    errors: list[ImageError] = [
        UnreadableImage(source.name(i), "0 bytes") for i in every if source.is_empty(i)
    ]
    if not errors:
        sample = every[:: max(1, len(source) // PROBES)]
        errors = [error for i in sample if (error := header_error(source, i, transform))]
    if errors:
        raise ValueError(summary(errors))


def header_error(source: Source, index: int, transform: Transform) -> ImageError | None:
    """What the header of an image already shows to be wrong with it."""
    name = source.name(index)
    try:
        with source.image(index) as image:
            transform.check(name, image.size)
    except ImageError as error:
        return error
    except Exception as error:  # as in `decode`
        return unreadable(source, index, error)
    return None


def unreadable(source: Source, index: int, error: Exception) -> UnreadableImage:
    """The error of an image that Pillow could not read, with a few words on why."""
    if source.is_empty(index):
        detail = "0 bytes"
    elif isinstance(error, UnidentifiedImageError):
        detail = "not an image"
    elif isinstance(error, OSError) and error.strerror:
        detail = error.strerror
    else:
        detail = str(error).strip(" .") or type(error).__name__
    return UnreadableImage(source.name(index), detail)


def threads() -> int:
    """Threads to decode in: one for each core, but only one in a worker process."""
    if get_worker_info() is not None:
        return 1
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4, 16)
