"""The randomness of training, a function of (seed, step, position in the global batch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowmatch.data import UNIFORMS, Order
from flowmatch.losses import Draws
from flowmatch.randomness import Rows, keyed_generator
from flowmatch.times import even_numbers
from flowmatch.training.settings import TrainConfig


@dataclass(frozen=True)
class Split:
    """How a global batch is dealt to processes and accumulated parts.

    Args:
        batch: size of the global batch.
        accumulate: parts of a process's share.
        processes: their number.
        rank: which of them this is.
    """

    batch: int
    accumulate: int
    processes: int
    rank: int

    def __post_init__(self) -> None:
        if self.batch % (self.processes * self.accumulate):
            raise ValueError(
                f"train.batch={self.batch} cannot be dealt to {self.processes} process(es) in"
                f" {self.accumulate} part(s) each; make it a multiple of"
                f" {self.processes * self.accumulate}"
            )

    @classmethod
    def of(cls, config: TrainConfig, processes: int, rank: int) -> Split:
        """The split that a config asks for.

        Raises:
            ValueError: the batch cannot be dealt so.
        """
        if not isinstance(config.micro_batch, int):
            return cls(config.batch, config.accumulate, processes, rank)
        if config.batch % (processes * config.micro_batch):
            raise ValueError(
                f"train.batch={config.batch} cannot be dealt to {processes} process(es) in portions"
                f" of train.micro_batch={config.micro_batch}; make it a multiple of"
                f" {processes * config.micro_batch}"
            )
        return cls(config.batch, config.batch // (processes * config.micro_batch), processes, rank)

    def smaller(self) -> Split:
        """The split into a few more parts: as few as an equal share allows."""
        share = self.batch // self.processes
        assert self.size > 1
        more = range(self.accumulate + 1, share + 1)
        return replace(self, accumulate=next(n for n in more if share % n == 0))

    @property
    def size(self) -> int:
        """Rows of one part."""
        return self.batch // (self.processes * self.accumulate)

    def parts(self, seed: int, step: int) -> list[Rows]:
        """This process's parts of a step's batch, in the order of computation."""
        numbers = (part * self.processes + self.rank for part in range(self.accumulate))
        return [Rows((seed, step), i * self.size, (i + 1) * self.size) for i in numbers]


def requests(
    order: Order, split: Split, *, seed: int, step: int, images: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What to load from `step` on, for ever: data indices and uniform numbers [b, 4] of each part.

    `images` is how many were seen before `step`: the position in the order.
    """
    while True:
        for part in split.parts(seed, step):
            indices = order.rows(images, part.start, part.stop)
            yield indices, part.for_purpose("augment").draw((UNIFORMS,))
        step, images = step + 1, images + split.batch


def draw(part: Rows, shape: tuple[int, ...], *, batch: int, device: torch.device) -> Draws:
    """Source noise, time and drop numbers of a part of a global batch, drawn on `device`."""
    uniforms = part.for_purpose("time").draw((2,), device=device)
    noise = part.for_purpose("source").draw(shape, law="normal", device=device)
    offset = Rows((*part.key, "offset"), 0, 1).draw((), device=device)
    even = even_numbers(part.start, part.stop, batch, offset)
    return Draws(noise, uniforms[:, 0], even, uniforms[:, 1])


def seed_the_rest(part: Rows, *, device: torch.device) -> None:
    """Make torch's own generators follow from the step too, for networks that draw from them."""
    key = keyed_generator(*part.key, "rest", part.start).initial_seed()
    # not torch.manual_seed: that formats a stack trace for devices that are not there
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)
