"""CIFAR-10: 32x32 photographs of ten classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from flowmatch.data.classic import ClassicData
from flowmatch.data.dataset import Dataset, Split


@dataclass(frozen=True, kw_only=True)
class CIFAR10(ClassicData):
    """50,000 photographs to train on and 10,000 to test on.

    For where the files are looked for, see `ClassicData`; for the other fields, `ImageData`.

    Args:
        flip: mirror half of the training images left to right.
    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """

    image_size: int = 32
    flip: bool = True
    kind: Literal["cifar10"] = "cifar10"

    native: ClassVar[int] = 32
    folder: ClassVar[str] = "cifar10"
    hub: ClassVar[str] = "uoft-cs/cifar10"
    unpacked: ClassVar[str] = "cifar-10-batches-py"

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        return self._build(split, flip=self.flip)

    @staticmethod
    def _torchvision() -> Callable[..., Any]:
        from torchvision.datasets import CIFAR10 as reader

        return reader  # type: ignore[no-any-return]
