"""The randomness of training, a function of (seed, step, position in the global batch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.data.order import ShuffledOrder
from flowmatch.losses import Draws
from flowmatch.tensors import keyed_generator

BLOCK = 32
"""Samples drawn by one generator. Part of what a seed means: changing it changes every run."""


@dataclass(frozen=True)
class Slice:
    """The rows `start:stop` of the global batch of a step: what one process computes at once."""

    step: int
    start: int
    stop: int


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

    @property
    def size(self) -> int:
        """Rows of one slice."""
        return self.batch // (self.processes * self.accumulate)

    def slices(self, step: int) -> list[Slice]:
        """This process's parts of a step's batch, in the order of computation."""
        first = (part * self.processes + self.rank for part in range(self.accumulate))
        return [Slice(step, i * self.size, (i + 1) * self.size) for i in first]


def requests(
    order: ShuffledOrder, split: Split, *, seed: int, step: int, images: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What to load from `step` on, for ever: data indices and uniform numbers [b, 4] of each slice.

    `images` is how many were seen before `step`: the position in the shuffled order.
    """
    while True:
        for part in split.slices(step):
            indices = order.indices(images + part.start, images + part.stop)
            yield indices, _in_blocks("augment", seed, part, (4,), "uniform", torch.device("cpu"))
        step, images = step + 1, images + split.batch


def draw(part: Slice, shape: tuple[int, ...], *, seed: int, device: torch.device) -> Draws:
    """Source noise, time and label-drop numbers of a slice, drawn on `device`."""
    uniforms = _in_blocks("times", seed, part, (2,), "uniform", device)
    noise = _in_blocks("source", seed, part, shape, "normal", device)
    return Draws(noise, uniforms[:, 0], uniforms[:, 1])


def seed_dropout(part: Slice, *, seed: int, device: torch.device) -> None:
    """Make torch's own generators, which dropout draws from, a function of the slice.

    The masks of a slice are drawn at once, so they are the one thing that another split changes.
    """
    key = keyed_generator("dropout", seed, part.step, part.start).initial_seed()
    # not torch.manual_seed: that formats a stack trace for devices that are not there
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)


def _in_blocks(
    purpose: str, seed: int, part: Slice, shape: tuple[int, ...], law: str, device: torch.device
) -> Tensor:
    """Draw whole blocks and cut the slice out, so that the split does not change a number."""
    first, last = part.start // BLOCK, (part.stop - 1) // BLOCK
    out = torch.empty((last - first + 1) * BLOCK, *shape, device=device)
    for i, block in enumerate(range(first, last + 1)):
        generator = keyed_generator(purpose, seed, part.step, block, device=device)
        rows = out[i * BLOCK : (i + 1) * BLOCK]
        if law == "normal":
            rows.normal_(generator=generator)
        else:
            rows.uniform_(generator=generator)
    return out[part.start - first * BLOCK : part.stop - first * BLOCK]
