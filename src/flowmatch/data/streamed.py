"""Images that are read in pieces, each of which is opened once an epoch."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from flowmatch.data.batch import Batch
from flowmatch.data.conditions import LABEL
from flowmatch.data.decoded import DecodedImages, header_error
from flowmatch.data.lanes import LaneOrder, Streaming
from flowmatch.data.pieces import PieceSource, Sample
from flowmatch.data.source import Source
from flowmatch.data.transforms import Transform


class StreamedImages(DecodedImages):
    """Images of a set that is too large to be read here and there; see `lanes` for their order.

    A class travels with its image: `values` has the labels only where they are known without.

    Args:
        source: the encoded images.
        transform, channels, flip: as of `DecodedImages`.
        num_classes: how many classes there are; None for a set without labels.
        streaming: how they are shuffled.
        random_access: whether `source` gives samples from all over at no greater cost.
    Raises:
        ValueError: the first image cannot be used. Batches raise ImageError, or a ValueError about
            a label or a piece that cannot be read.
    """

    def __init__(
        self,
        source: PieceSource,
        transform: Transform,
        *,
        channels: int,
        num_classes: int | None,
        streaming: Streaming,
        random_access: bool,
        flip: bool = False,
    ) -> None:
        known = num_classes if source.labels is not None else None
        super().__init__(source, transform, channels=channels, num_classes=known, flip=flip)
        self.num_classes = num_classes
        self.random_access = random_access
        self._pieces, self._streaming = source, streaming
        mean = max(len(source) // len(source.counts), 1)
        source.most_open = streaming.lanes * (streaming.buffer // mean + 2)
        # what two windows of no lane needed is the rest of a piece that another process reads
        source.kept_for = 2 * streaming.lanes * streaming.buffer
        if error := header_error(_Read(source, torch.tensor([0])), 0, transform):
            raise error

    def order(self, seed: int, *, batch: int, processes: int) -> LaneOrder:
        counts, streaming = self._pieces.counts, self._streaming
        return LaneOrder(counts, streaming, seed=seed, batch=batch, processes=processes)

    def expect(self, indices: Tensor) -> None:
        self._pieces.expect(indices)

    def raw(self, indices: Tensor, uniforms: Tensor | None) -> Batch:
        indices = indices.cpu()
        read = _Read(self._pieces, indices)
        images = self._decoded(read, range(len(read)), uniforms)
        return Batch(images, {} if self.num_classes is None else {LABEL: self._checked(read)})

    def _checked(self, read: _Read) -> Tensor:
        """The labels of samples, [B] int64, all of which are classes."""
        assert self.num_classes is not None
        labels = torch.tensor([sample.label for sample in read.samples], dtype=torch.int64)
        wrong = (labels < 0) | (labels >= self.num_classes)
        if bool(wrong.any()):
            slot = int(wrong.nonzero()[0])
            raise ValueError(
                f"{read.name(slot)} has the label {int(labels[slot])}; with {self.num_classes}"
                f" classes labels lie in 0 ... {self.num_classes - 1}: renumber them, or correct"
                " num_classes"
            )
        return labels


class _Read(Source):
    """Samples that were fetched together, by their place in the batch."""

    def __init__(self, source: PieceSource, indices: Tensor) -> None:
        self.source, self.indices, self.labels = source, indices, None
        self.samples: list[Sample] = source.fetch(indices)

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.samples[index].content))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def stamp(self) -> str:
        raise AssertionError("only what was read of a set, not a set")

    def is_empty(self, index: int) -> bool:
        return not self.samples[index].content
