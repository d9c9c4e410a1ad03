"""Encoded images in pieces that are each opened once: row groups, or neighbours in a tar file."""

from __future__ import annotations

import io
import os
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from flowmatch.data.source import Source


class Sample(NamedTuple):
    """An encoded image as it was read, and its class, -1 without one."""

    content: bytes
    label: int


Opened = Callable[[int], Sample]
"""An open piece: gives a sample by its row in the piece."""


class PieceSource(Source):
    """Base of the sources in pieces; a sample's class may be known only with its image.

    The pieces used last stay open. One whose every sample was read is closed at once: in the order
    of training none is needed again before the next epoch.

    Args:
        counts: samples of each piece.
        labels: all classes, where they are known without the images.
    """

    def __init__(self, counts: Sequence[int], labels: Tensor | None = None) -> None:
        self.counts = torch.tensor(counts, dtype=torch.int64)
        self.labels = labels
        self.most_open = 64
        self._ends = self.counts.cumsum(0)
        self._forget()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def image(self, index: int) -> Image.Image:
        (sample,) = self.fetch(torch.tensor([index]))
        return Image.open(io.BytesIO(sample.content))

    def fetch(self, indices: Tensor) -> list[Sample]:
        """The samples with these indices [B]; each piece is opened at most once for them.

        Raises:
            ValueError: a piece cannot be read.
        """
        if self._process != os.getpid():  # a worker: locks and files of its parent are not its own
            self._forget()
        found: dict[int, Sample] = {}
        pieces = torch.searchsorted(self._ends, indices, right=True)
        first = (self._ends - self.counts)[pieces]
        slots: dict[int, list[tuple[int, int]]] = {}
        rows = (indices - first).tolist()
        for slot, (piece, row) in enumerate(zip(pieces.tolist(), rows, strict=True)):
            slots.setdefault(piece, []).append((slot, row))
        with self._lock:
            for piece, wanted in slots.items():
                opened = self._opened(piece)
                found |= {slot: opened(row) for slot, row in wanted}
                self._left[piece] -= len(wanted)
                if self._left[piece] <= 0:
                    del self._open_now[piece]
        return [found[slot] for slot in range(len(rows))]

    def place(self, index: int) -> tuple[int, int]:
        """The piece of a sample, and its row in it."""
        piece = int(torch.searchsorted(self._ends, index, right=True))
        return piece, index - int(self._ends[piece] - self.counts[piece])

    @abstractmethod
    def open(self, piece: int) -> Opened:
        """Open a piece.

        Raises:
            ValueError: it cannot be read.
        """

    def _opened(self, piece: int) -> Opened:
        if piece not in self._open_now:
            self._open_now[piece] = self.open(piece)
            self._left[piece] = int(self.counts[piece])
            while len(self._open_now) > self.most_open:
                self._open_now.popitem(last=False)
        self._open_now.move_to_end(piece)
        return self._open_now[piece]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_open_now": None, "_process": None}

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open_now: OrderedDict[int, Opened] = OrderedDict()
        self._left: dict[int, int] = {}
