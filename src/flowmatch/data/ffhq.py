"""FFHQ: 70,000 photographs of faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL.Image import Resampling

from flowmatch.data.dataset import Dataset, Split
from flowmatch.data.files import image_files
from flowmatch.data.images import ImageData
from flowmatch.data.roots import FALLBACK, candidates, looked_in
from flowmatch.data.source import FileSource
from flowmatch.data.transforms import ShortSide

PLACES = ("images1024x1024", "thumbnails128x128")
FIRST_TEST_IMAGE = 60_000


@dataclass(frozen=True, kw_only=True)
class FFHQ(ImageData):
    """The PNG files of the release, named 00000.png to 69999.png in any subfolders; unlabelled.

    Read from `root/images1024x1024`, else `root/thumbnails128x128`, else the same below
    `root/ffhq`, else from `root` itself; then in the same places below the folder that
    $FLOWMATCH_DATA names. As is usual for this set, one trains on all 70,000 images. The test
    split is those from number 60,000 on, so it is part of what was trained on: good for comparing
    features, no evidence of generalisation. For the other fields see `ImageData`.

    Args:
        root: the folder of the images.
        flip: mirror half of the training images left to right.
    Source: Karras et al. 2019 (StyleGAN); resized by Lanczos as in Karras et al. 2022 (EDM).
    """

    root: str = "data"
    image_size: int = 64
    flip: bool = True
    kind: Literal["ffhq"] = "ffhq"

    def build(self, split: Split = "train") -> Dataset:
        """The images of one split."""
        folder, files = self._find()
        if split == "test":
            files = [file for file in files if int(Path(file).stem) >= FIRST_TEST_IMAGE]
        if not files:
            raise ValueError(
                f"{folder} holds none of the test images, {FIRST_TEST_IMAGE} to 69999; complete"
                " it, or use the train split"
            )
        transform = ShortSide(
            size=self.image_size, upsample=self.upsample, resample=Resampling.LANCZOS
        )
        return self._open(FileSource(folder, files), transform, flip=self.flip)

    def _find(self) -> tuple[Path, list[str]]:
        """The folder of the images, and their paths in it."""
        for base in candidates(self.root):
            places = (base / above / place for above in ("", "ffhq") for place in PLACES)
            folder = next((place for place in places if place.is_dir()), base)
            files = [file for file in image_files(folder) if _is_numbered(Path(file))]
            if files:
                return folder, files
        raise ValueError(
            f"no FFHQ found in {looked_in(self.root)}; set root (or ${FALLBACK}) to the folder that"
            f" holds {PLACES[0]}/00000/00000.png"
        )


def _is_numbered(file: Path) -> bool:
    """Whether a file is named as in the release, e.g. 00042.png."""
    return file.suffix == ".png" and len(file.stem) == 5 and file.stem.isdecimal()
