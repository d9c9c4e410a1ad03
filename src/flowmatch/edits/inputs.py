"""The images of an editing job: from files, or from a run's own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowmatch.data import DataConfig, FileSource, Split
from flowmatch.data.decoded import unreadable
from flowmatch.data.files import image_files
from flowmatch.data.pixels import to_channels
from flowmatch.tensors import from_uint8


@dataclass(frozen=True)
class Inputs:
    """Images, and what their results are called.

    Args:
        names: one an image, without a suffix.
        x: [N, C, H, W] in [-1, 1].
    """

    names: tuple[str, ...]
    x: Tensor


def inputs_from_files(paths: Sequence[Path], shape: tuple[int, ...]) -> Inputs:
    """Images of one shape from files, and from the files in folders.

    Args:
        paths: image files and folders.
        shape: (C, H, W) that each must have. Grey images serve a colour model too.
    Raises:
        ValueError: no images, unreadable ones, or another size or colour.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ValueError("there are no images to edit; give image files, a folder, or --data")
    names = [file.stem for file in files]
    return Inputs(tuple(names), torch.stack([_read(file, shape) for file in files]))


def inputs_from_data(data: DataConfig, split: Split, count: int) -> Inputs:
    """The first images of a split of a data set.

    Raises:
        ValueError: fewer than asked for, or no such split.
    """
    dataset = data.build(split)
    if not 1 <= count <= len(dataset):
        raise ValueError(
            f"--count {count} of the {len(dataset):,} images of {split}; choose from 1 to as many"
        )
    names = tuple(f"{split}-{i:05d}" for i in range(count))
    return Inputs(names, dataset.plain(torch.arange(count)).x1)


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """A mask file as bool [H, W], True where it is white (brighter than mid-grey).

    Raises:
        ValueError: no readable image, or of another size (height, width).
    """
    image = to_channels(_open(path), 1)
    if (image.height, image.width) != size:
        raise ValueError(
            f"the mask {path} is {image.height}x{image.width} pixels, but the model's images are"
            f" {size[0]}x{size[1]}; give a mask of their size"
        )
    return torch.from_numpy(np.array(image)) > 127


def _files(path: Path) -> list[Path]:
    return [path / name for name in image_files(path)] if path.is_dir() else [path]


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """One image, [C, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(to_channels(_open(path), 3))).permute(2, 0, 1)
    channels, height, width = shape
    if pixels.shape[1:] != (height, width):
        raise ValueError(
            f"{path} is {pixels.shape[1]}x{pixels.shape[2]} pixels, but {height}x{width} are"
            " needed here; resize it"
        )
    if channels == 1 and bool((pixels != pixels[:1]).any()):
        raise ValueError(f"{path} is in colour, but grey images are needed here; convert it")
    return from_uint8(pixels[:channels])


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"there is no image file {path}")
    source = FileSource(path.parent, [path.name])
    try:
        with source.image(0) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error ...
        raise unreadable(source, 0, error) from None
