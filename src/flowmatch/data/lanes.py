"""The order of a streamed set: near each other in the data what is near in time, without state.

A data set too large to be read here and there is a list of *pieces*, each of which is read whole
(a row group of a parquet file) or in one go (neighbours in a tar file). Each epoch permutes them;
in a line, they hold the N samples. The line is cut into L *lanes*, always in the same places:

    lane l holds the positions  floor(l N / L) ... floor((l + 1) N / L) - 1  of the line,
    and feeds the rows          l B / L ... (l + 1) B / L - 1                of every batch of B.

In a lane, windows of `buffer` neighbours are shuffled. So every batch comes from L places of the
data, a lane visits each of its samples once before its next epoch begins, any position is found
without replaying those before it, and a process opens only the pieces of the lanes that its rows
belong to, however many processes share the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from flowmatch.component import Component
from flowmatch.data.order import Order
from flowmatch.randomness import keyed_generator


@dataclass(frozen=True, kw_only=True)
class Streaming(Component):
    """How a set that is streamed is shuffled; see `lanes`.

    Memory for encoded images, over all processes: those of about `lanes` * (`buffer` + a piece),
    except of tar files on a local disk.

    Args:
        lanes: places of the data that every batch comes from; it divides `train.batch`, and the
            number of processes divides it.
        buffer: neighbours of a lane that are shuffled among each other.
    """

    lanes: int = 64
    buffer: int = 256

    def __post_init__(self) -> None:
        for name in ("lanes", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"stream.{name} must be at least 1, got {getattr(self, name)}")


class LaneOrder(Order):
    """The order of a streamed set, as this module has it.

    Args:
        counts: samples of each piece, [K] int64; piece k holds the indices behind those before it.
        streaming: lanes and buffer.
        seed: key of the permutations.
        batch: rows of a global batch.
        processes: over how many they are dealt.
    Raises:
        ValueError: these numbers do not go together.
    """

    def __init__(
        self, counts: Tensor, streaming: Streaming, *, seed: int, batch: int, processes: int
    ) -> None:
        lanes, self.length = streaming.lanes, int(counts.sum())
        if batch % lanes:
            raise ValueError(
                f"train.batch={batch} is no multiple of data.stream.lanes={lanes}: every batch"
                " takes as many samples from each lane; change one of them"
            )
        if lanes % processes:
            raise ValueError(
                f"data.stream.lanes={lanes} cannot be dealt to {processes} processes; make it a"
                f" multiple of {processes}"
            )
        if self.length < lanes:
            raise ValueError(
                f"{self.length:,} samples do not fill data.stream.lanes={lanes}; lower it"
            )
        self._counts, self._first = counts, counts.cumsum(0) - counts
        self._lanes, self._buffer, self._seed = lanes, streaming.buffer, seed
        self._share = batch // lanes
        self._line = lru_cache(maxsize=3)(self._permuted)  # lanes may be in neighbouring epochs
        self._window = lru_cache(maxsize=4 * lanes)(self._shuffled)

    def rows(self, images: int, start: int, stop: int) -> Tensor:
        found = []
        while start < stop:
            lane, within = divmod(start, self._share)
            count = min(self._share - within, stop - start)
            found.append(self._of_lane(lane, images // self._lanes + within, count))
            start += count
        return torch.cat(found)

    def lanes(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop) // self._share

    def _of_lane(self, lane: int, position: int, count: int) -> Tensor:
        """The indices at so many positions of a lane's endless sequence."""
        begin, end = self._ends(lane)
        found = []
        while count:
            epoch, offset = divmod(position, end - begin)
            # windows of different lanes end at different times, so that reading is spread
            shift = lane * self._buffer // self._lanes
            window = (offset + shift) // self._buffer
            low = max(window * self._buffer - shift, 0)
            indices = self._window(lane, epoch, low, (window + 1) * self._buffer - shift)
            found.append(indices[offset - low : offset - low + count])
            count -= len(found[-1])
            position += len(found[-1])
        return torch.cat(found)

    def _shuffled(self, lane: int, epoch: int, low: int, high: int) -> Tensor:
        """The indices of a window of a lane, in the order in which they are visited."""
        begin, end = self._ends(lane)
        count = min(high, end - begin) - low
        key = ("window", self._seed, epoch, lane, low)
        places = begin + low + torch.randperm(count, generator=keyed_generator(*key))
        order, ends = self._line(epoch)
        at = torch.searchsorted(ends, places, right=True)
        piece = order[at]
        return self._first[piece] + places - (ends[at] - self._counts[piece])

    def _permuted(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The pieces of an epoch in a line, and where each ends."""
        generator = keyed_generator("pieces", self._seed, epoch)
        order = torch.randperm(len(self._counts), generator=generator)
        return order, self._counts[order].cumsum(0)

    def _ends(self, lane: int) -> tuple[int, int]:
        return (
            lane * self.length // self._lanes,
            (lane + 1) * self.length // self._lanes,
        )
