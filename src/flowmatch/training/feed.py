"""What a training step is fed: data in their order, augmented, and the step's random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.data import Batch, Dataset, stream
from flowmatch.losses import Draws
from flowmatch.randomness import Rows
from flowmatch.training.draws import Split, draw, requests
from flowmatch.training.settings import TrainConfig
from flowmatch.training.waiting import DataClock


class Part(NamedTuple):
    """A part of a step's batch, on the device."""

    rows: Rows
    x1: Tensor
    cond: dict[str, Tensor]
    draws: Draws


class Feed:
    """The parts that this process computes, step by step, in order or from anywhere.

    `clock` measures how long they are waited for.

    Args:
        dataset: the data.
        config: says the seed, the workers and how images are moved.
        device: where the parts are wanted.
        channels_last: their layout in memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: TrainConfig,
        *,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self._dataset, self._seed = dataset, config.seed
        self._workers, self._augment, self._device = config.workers, config.augment, device
        self._format = torch.channels_last if channels_last else torch.preserve_format
        self.clock = DataClock(device)
        self._batches: Iterator[Batch] | None = None
        self._next = -1

    def parts(self, split: Split, step: int, images: int) -> Iterator[Part]:
        """The parts of a step, before which so many images were seen.

        A step that follows on the last one is read ahead of time, as long as the split stays.
        """
        if self._batches is None or step != self._next:
            order = self._dataset.order(self._seed, batch=split.batch, processes=split.processes)
            lanes = [order.lanes(rows.start, rows.stop) for rows in split.parts(self._seed, step)]
            wanted = requests(order, split, seed=self._seed, step=step, images=images)
            self._batches = stream(
                self._dataset,
                wanted,
                workers=self._workers,
                device=self._device,
                lanes=[own for own in lanes if own is not None] or None,
            )
        self._next = step + 1
        for rows in split.parts(self._seed, step):
            with self.clock.running():
                batch = next(self._batches)
            yield self._part(batch, rows, split.batch)

    def _part(self, batch: Batch, rows: Rows, total: int) -> Part:
        x1, cond = batch.x1, batch.cond
        if self._augment is not None:
            shape = (self._augment.uniforms,)
            uniforms = rows.for_purpose("geometry").draw(shape, device=self._device)
            x1, condition = self._augment(x1, uniforms)
            cond = {**cond, "augment": condition}
        draws = draw(rows, self._dataset.shape, batch=total, device=self._device)
        noise = draws.noise.to(memory_format=self._format)
        return Part(rows, x1.to(memory_format=self._format), cond, draws._replace(noise=noise))
