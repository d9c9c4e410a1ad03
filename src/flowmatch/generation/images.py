"""One PNG file an image."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowmatch.data.pixels import encode_png
from flowmatch.generation.drawing import Drawn
from flowmatch.generation.store import Store, as_image, write_whole

SAMPLE = re.compile(r"\d{5,}\.png")
"""How our files are called: the seed with at least five digits."""
_PIECE = 64


class ImageStore(Store):
    """`00000.png ...`, named by their seeds."""

    def missing(self, process: int, processes: int) -> list[int]:
        mine = self.job.seeds[process::processes]
        there = set(self.held())
        return [seed for seed in mine if seed not in there]

    def pieces(self, drawn: Drawn) -> Iterator[Drawn]:
        for start in range(0, len(drawn.seeds), _PIECE):
            yield drawn.rows(start, start + _PIECE)

    def write(self, drawn: Drawn) -> None:
        for seed, image in zip(drawn.seeds, drawn.x, strict=True):
            write_whole(self._path(seed), encode_png(image))

    def held(self) -> list[int]:
        names = (p.name for p in self.folder.iterdir())
        return sorted(int(name.removesuffix(".png")) for name in names if SAMPLE.fullmatch(name))

    def first(self, count: int) -> Tensor:
        paths = (self._path(seed) for seed in self.job.seeds[:count])
        return torch.stack([as_image(np.asarray(Image.open(path))) for path in paths])

    def _path(self, seed: int) -> Path:
        return self.folder / f"{seed:05d}.png"
