"""Encoded images in pieces that are each opened once: row groups, or neighbours in a tar file."""

from __future__ import annotations

import io
import os
import threading
from abc import abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from flowmatch.data.source import Source
from flowmatch.data.storage import is_local, reopened

_AT_A_TIME = 8
"""Pieces of a distant store that a process opens at a time."""


class Sample(NamedTuple):
    """An encoded image as it was read, and its class, -1 without one."""

    content: bytes
    label: int


Opened = Callable[[int], Sample]
"""An open piece: gives a sample by its row in the piece."""


class PieceSource(Source):
    """Base of the sources in pieces; a sample's class may be known only with its image.

    The pieces used last stay open. One whose every sample was read is closed at once: in the order
    of training none is needed again before the next epoch. Pieces of a distant store are opened
    several at a time, and ahead of time where it is known what will be asked for.

    Args:
        fs: the file system that they are on.
        counts: samples of each piece.
        labels: all classes, where they are known without the images.
    """

    _fetched: int

    most_open: int = 64
    """Pieces that are open at a time."""

    kept_for: int | None = None
    """A piece is closed when so many samples of others were read since it was last needed."""

    def __init__(self, fs: Any, counts: Sequence[int], labels: Tensor | None = None) -> None:
        self._fs = fs
        self.counts = torch.tensor(counts, dtype=torch.int64)
        self.labels = labels
        self._distant = not is_local(fs)
        self._ends: list[int] = self.counts.cumsum(0).tolist()
        self._forget()

    def __len__(self) -> int:
        return self._ends[-1]

    def image(self, index: int) -> Image.Image:
        (sample,) = self.fetch(torch.tensor([index]))
        return Image.open(io.BytesIO(sample.content))

    def fetch(self, indices: Tensor) -> list[Sample]:
        """The samples with these indices [B]; each piece is opened at most once for them.

        Raises:
            ValueError: a piece cannot be read.
        """
        self.expect(indices)
        found: dict[int, Sample] = {}
        slots: dict[int, list[tuple[int, int]]] = {}
        for slot, index in enumerate(indices.tolist()):
            piece, row = self.place(index)
            slots.setdefault(piece, []).append((slot, row))
        with self._lock:
            for piece, wanted in slots.items():
                opened = self._opened(piece)
                found |= {slot: opened(row) for slot, row in wanted}
                self._left[piece] -= len(wanted)
                self._needed[piece] = self._fetched = self._fetched + len(wanted)
                if self._left[piece] <= 0:
                    del self._open_now[piece]
            self._close_old()
        return [found[slot] for slot in range(len(indices))]

    def expect(self, indices: Tensor) -> None:
        """Begin to open the pieces of samples that will be fetched, if that takes long."""
        if self._process != os.getpid():  # a worker: what its parent has open is not its own
            self._fs = reopened(self._fs)
            self._forget()
        if not self._distant:
            return
        with self._lock:
            for piece in dict.fromkeys(self.place(index)[0] for index in indices.tolist()):
                if piece not in self._open_now and piece not in self._coming:
                    self._coming[piece] = self._pool.submit(self.open, piece)

    def place(self, index: int) -> tuple[int, int]:
        """The piece of a sample, and its row in it."""
        piece = bisect_right(self._ends, index)
        return piece, index - (self._ends[piece - 1] if piece else 0)

    @abstractmethod
    def open(self, piece: int) -> Opened:
        """Open a piece; called from several threads at once.

        Raises:
            ValueError: it cannot be read.
        """

    def _opened(self, piece: int) -> Opened:
        if piece not in self._open_now:
            coming = self._coming.pop(piece, None)
            self._open_now[piece] = self.open(piece) if coming is None else coming.result()
            self._left[piece] = int(self.counts[piece])
        self._open_now.move_to_end(piece)
        return self._open_now[piece]

    def _close_old(self) -> None:
        while self._open_now:
            oldest = next(iter(self._open_now))
            unused = self._fetched - self._needed[oldest]
            long = self.kept_for is not None and unused > self.kept_for
            if not long and len(self._open_now) <= self.most_open:
                return
            del self._open_now[oldest]

    def __getstate__(self) -> dict[str, Any]:
        mine = dict.fromkeys(("_lock", "_open_now", "_coming", "_pool", "_process"))
        return self.__dict__ | mine

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open_now: OrderedDict[int, Opened] = OrderedDict()
        self._coming: dict[int, Future[Opened]] = {}
        self._pool = ThreadPoolExecutor(_AT_A_TIME)  # its threads start when they are needed
        self._left: dict[int, int] = {}
        self._needed: dict[int, int] = {}
        self._fetched = 0
