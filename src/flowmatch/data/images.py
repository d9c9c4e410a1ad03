"""What all families of images share: their size, and whether they are held in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flowmatch.component import Component
from flowmatch.data.columns import ColumnConfig
from flowmatch.data.conditions import Values, check_names
from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.decoded import DecodedImages, decode_all, probe
from flowmatch.data.source import Source
from flowmatch.data.transforms import Transform


@dataclass(frozen=True, kw_only=True)
class ImageData(Component):
    """Base of the families of images.

    Args:
        image_size: side of the square images in pixels.
        channels: 1 for grey, 3 for RGB; the images are converted.
        upsample: accept images that are smaller than `image_size`, and enlarge them.
        memory_gib: a set of up to this size (as uint8, in GiB) is decoded once and kept in memory,
            in each process; a larger one is decoded anew for each batch, by worker processes.
    Raises:
        ValueError: a size that is not positive.
    """

    image_size: int
    channels: Literal[1, 3] = 3
    upsample: bool = False
    memory_gib: float = 2.0

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.memory_gib < 0:
            raise ValueError(f"memory_gib must be at least 0 (never in memory): {self.memory_gib}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, known before any is read."""
        return (self.channels, self.image_size, self.image_size)

    def _check_native(self, native: int) -> None:
        """Refuse to enlarge images whose size is known before they are read."""
        if self.image_size > native and not self.upsample:
            raise ValueError(
                f"image_size {self.image_size} is above the {native} pixels of these images;"
                " lower it, or set upsample: true to enlarge them"
            )

    def _open(
        self,
        source: Source,
        transform: Transform,
        *,
        num_classes: int | None = None,
        conditions: Mapping[str, Values] | None = None,
        flip: bool = False,
    ) -> Dataset:
        """The data set of `source`: in memory if it fits and decoding once is enough."""
        size_bytes = len(source) * self.channels * transform.size**2
        if not transform.random and size_bytes <= self.memory_gib * 2**30:
            return decode_all(
                source,
                transform,
                channels=self.channels,
                num_classes=num_classes,
                conditions=conditions,
                flip=flip,
            )
        probe(source, transform)
        return DecodedImages(
            source,
            transform,
            channels=self.channels,
            num_classes=num_classes,
            conditions=conditions,
            flip=flip,
        )


@dataclass(frozen=True, kw_only=True)
class ConditionedImages(ImageData, ABC):
    """Base of the families whose images may come with other conditions than a class.

    For the other fields see `ImageData`.

    Args:
        conditions: columns beside the images, by the name of the condition.
    """

    conditions: Mapping[str, ColumnConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.conditions)

    @abstractmethod
    def values(self, split: Split = "train", *, first: int | None = None) -> dict[str, Values]:
        """What the images of a split are conditioned on, the class included, without the images.

        Args:
            split: which of the two.
            first: of only the first so many images.
        """

    @abstractmethod
    def stamps(self, split: Split = "train") -> dict[str, str]:
        """What all of these values are, by name, in 12 hexadecimal digits; nothing is embedded."""
