"""CelebA: 202,599 photographs of faces, aligned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.errors import listing
from flowmatch.data.files import image_files
from flowmatch.data.images import ImageData
from flowmatch.data.roots import FALLBACK, first_folder, looked_in
from flowmatch.data.source import FileSource
from flowmatch.data.transforms import Window

ALIGNED_SIZE = (178, 218)
WINDOW = 128  # side of the window, centred on the face at (89, 121)
CENTRE = (89, 121)

IMAGES = "img_align_celeba"
PARTITIONS = ("list_eval_partition.txt", "Eval/list_eval_partition.txt", "list_eval_partition.csv")
PLACES = ("", "celeba", "CelebA", "Img", "celeba/Img", "CelebA/Img")


@dataclass(frozen=True, kw_only=True)
class CelebA(ImageData):
    """The standard 128x128 window around the face, resized; unlabelled.

    Reads `root/img_align_celeba/*.jpg` (also below `root/celeba`, and in the same places below
    the folder that $FLOWMATCH_DATA names). The official `list_eval_partition.txt` beside that
    folder decides the split: 162,770 images (part 0) to train on and 19,962 (part 2) to test on.
    It is required, since without it nothing keeps test images out of training. For the other
    fields see `ImageData`.

    Args:
        root: the folder with `img_align_celeba`.
        image_size: side of the images in pixels, up to 128.
        flip: mirror half of the training images left to right.
    Source: Liu et al. 2015; the window is that of Song et al. 2021 (DDIM), bilinearly resized.
    """

    root: str = "data"
    image_size: int = 64
    flip: bool = True
    kind: Literal["celeba"] = "celeba"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_native(WINDOW)

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        places = [f"{place}/{IMAGES}".lstrip("/") for place in PLACES]
        folder = first_folder(self.root, [f"{place}/{IMAGES}" for place in places] + places)
        if folder is None:
            raise ValueError(
                f"no CelebA found in {looked_in(self.root)}; set root (or ${FALLBACK}) to the"
                f" folder that holds {IMAGES}/*.jpg"
            )
        wanted = _listed(folder, "0" if split == "train" else "2")
        if missing := sorted(set(wanted) - set(image_files(folder, recursive=False))):
            raise ValueError(
                f"{folder} lacks {len(missing):,} of the {len(wanted):,} images of the {split}"
                f" split: {listing(missing)}; unpack the archive again"
            )
        left, top = (c - WINDOW // 2 for c in CENTRE)
        transform = Window(
            size=self.image_size,
            upsample=self.upsample,
            box=(left, top, left + WINDOW, top + WINDOW),
            expected=ALIGNED_SIZE,
        )
        return self._open(FileSource(folder, wanted), transform, flip=self.flip)


def _listed(folder: Path, part: str) -> list[str]:
    """The images that the official partition puts into `part`."""
    above = (folder.parent, folder.parent.parent)  # some archives nest the folder of images
    found = next((f for a in above for p in PARTITIONS if (f := a / p).is_file()), None)
    if found is None:
        raise ValueError(
            f"{folder.parent / PARTITIONS[0]} is missing, which says which images to train on and"
            " which to test on; download it from the same place as the images"
        )
    rows = [line.replace(",", " ").split() for line in found.read_text().splitlines()]
    names = sorted(row[0] for row in rows if len(row) == 2 and row[1] == part)
    if not names:
        raise ValueError(
            f"{found} lists no image of part {part}; expected lines such as '000001.jpg {part}'"
        )
    return names
