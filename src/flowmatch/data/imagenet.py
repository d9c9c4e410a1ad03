"""ImageNet: 1.28 million photographs of 1,000 classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.files import class_names, image_files, labelled_files
from flowmatch.data.images import ImageData
from flowmatch.data.roots import FALLBACK, first_folder, looked_in
from flowmatch.data.transforms import AdmCentre, AdmRandom

PLACES = ("", "imagenet", "ImageNet", "ILSVRC2012")


@dataclass(frozen=True, kw_only=True)
class ImageNet(ImageData):
    """`root/train/WNID/*.JPEG` to train on and `root/val/WNID/*.JPEG` to test on.

    Class k is the k-th folder (a WordNet id) of `train` in alphabetical order. Also found in
    `root/imagenet`, and in the same places below the folder that $FLOWMATCH_DATA names. For the
    other fields see `ImageData`.

    Args:
        root: the folder with `train` and `val`.
        flip: mirror half of the training images left to right.
        crop: "center" or "random", as in ADM. Random crops are decoded anew each time.
    Source: Deng et al. 2009; the crops are those of Dhariwal & Nichol 2021 (ADM).
    """

    root: str = "data"
    image_size: int = 64
    flip: bool = True
    crop: Literal["center", "random"] = "center"
    kind: Literal["imagenet"] = "imagenet"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop not in ("center", "random"):
            raise ValueError(f"crop must be 'center' or 'random', got {self.crop!r}")

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        part = "train" if split == "train" else "val"
        folder = first_folder(self.root, [f"{place}/{part}".lstrip("/") for place in PLACES])
        if folder is None:
            raise ValueError(
                f"no ImageNet found in {looked_in(self.root)}; set root (or ${FALLBACK}) to the"
                f" folder that holds {part}/WNID/*.JPEG"
            )
        if image_files(folder, recursive=False):
            raise ValueError(
                f"{folder} holds images outside class folders; sort them into {folder}/WNID/"
            )
        train = folder.parent / "train"
        classes = class_names(train if train.is_dir() else folder)
        source = labelled_files(folder, classes)
        if not len(source):
            raise ValueError(f"{folder} holds no images; fill it with WNID/*.JPEG, or set root")
        transform = (AdmRandom if self.crop == "random" else AdmCentre)(
            size=self.image_size, upsample=self.upsample
        )
        return self._open(source, transform, num_classes=len(classes), flip=self.flip)
