"""MNIST: 28x28 handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from flowmatch.data.classic import ClassicData
from flowmatch.data.dataset import Dataset, Split


@dataclass(frozen=True, kw_only=True)
class MNIST(ClassicData):
    """60,000 digits in grey to train on and 10,000 to test on. Never flipped.

    For where the files are looked for, see `ClassicData`; for the other fields, `ImageData`.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.
    """

    image_size: int = 28
    channels: Literal[1, 3] = 1
    kind: Literal["mnist"] = "mnist"

    native: ClassVar[int] = 28
    folder: ClassVar[str] = "mnist"
    hub: ClassVar[str] = "ylecun/mnist"
    unpacked: ClassVar[str] = "MNIST/raw"

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        return self._build(split, flip=False)

    @staticmethod
    def _torchvision() -> Callable[..., Any]:
        from torchvision.datasets import MNIST as reader

        return reader  # type: ignore[no-any-return]
