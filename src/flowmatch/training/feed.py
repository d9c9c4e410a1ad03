"""What a training step is fed: data in their order, augmented, and the step's random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.data import Batch, Dataset, ShuffledOrder, stream
from flowmatch.losses import Draws
from flowmatch.randomness import Rows
from flowmatch.training.draws import Split, draw, requests
from flowmatch.training.settings import TrainConfig


class Part(NamedTuple):
    """A part of a step's batch, on the device."""

    rows: Rows
    x1: Tensor
    cond: dict[str, Tensor]
    draws: Draws


class Feed:
    """The parts that this process computes, step by step, in order or from anywhere.

    Args:
        dataset: the data.
        split: how the global batch is dealt.
        config: says the seed, the workers and how images are moved.
        device: where the parts are wanted.
        channels_last: their layout in memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        config: TrainConfig,
        *,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self._dataset, self._split, self._seed = dataset, split, config.seed
        self._workers, self._augment, self._device = config.workers, config.augment, device
        self._format = torch.channels_last if channels_last else torch.preserve_format
        self._batches: Iterator[Batch] | None = None
        self._next = -1

    def parts(self, step: int, images: int) -> Iterator[Part]:
        """The parts of a step, before which so many images were seen."""
        if self._batches is None or step != self._next:
            order = ShuffledOrder(len(self._dataset), self._seed)
            wanted = requests(order, self._split, seed=self._seed, step=step, images=images)
            self._batches = stream(
                self._dataset, wanted, workers=self._workers, device=self._device
            )
        self._next = step + 1
        for rows in self._split.parts(self._seed, step):
            yield self._part(next(self._batches), rows)

    def _part(self, batch: Batch, rows: Rows) -> Part:
        x1, cond = batch.x1, batch.cond
        if self._augment is not None:
            shape = (self._augment.uniforms,)
            uniforms = rows.for_purpose("geometry").draw(shape, device=self._device)
            x1, condition = self._augment(x1, uniforms)
            cond = {**cond, "augment": condition}
        draws = draw(rows, self._dataset.shape, batch=self._split.batch, device=self._device)
        noise = draws.noise.to(memory_format=self._format)
        return Part(rows, x1.to(memory_format=self._format), cond, draws._replace(noise=noise))
