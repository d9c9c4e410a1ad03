"""How long the device had nothing to do but to wait for data, and what to do about it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

TOLERATED = 0.1
"""Share of the training time that may go by in waiting before anybody is told."""
_LINES, _SECONDS = 3, 10.0
"""Log lines in a row, and seconds of them, that must show it: a first reading is slow."""


class DataClock:
    """Sums up the seconds that the device waits for data.

    Of a GPU they are measured on the GPU, by events before and after: the host, which runs ahead,
    may well wait for data while the GPU still computes. Nothing waits for the device.

    Args:
        device: what waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens meanwhile as waiting for data."""
        if self._on_gpu:
            before, after = _event(), _event()
            before.record()
            yield
            after.record()
            self._open.append((before, after))
            return
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    def read(self) -> float:
        """The seconds since the last call; of a GPU, it waits for what is still to be measured."""
        for before, after in self._open:
            after.synchronize()
            self._seconds += before.elapsed_time(after) / 1000
        self._open.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class WaitWatch:
    """Says once what to do about a run that waits for its data."""

    def __init__(self) -> None:
        self._lines, self._since = 0, 0.0
        self._told = False

    def look(self, share: float, seconds: float) -> str | None:
        """What to tell the user after a log line; None: nothing.

        Args:
            share: of the time since the last line, in which the device waited.
            seconds: of training so far.
        """
        self._lines = self._lines + 1 if share > TOLERATED else 0
        if not self._lines:
            self._since = seconds
        if self._told or self._lines < _LINES or seconds - self._since < _SECONDS:
            return None
        self._told = True
        return (
            f"{share:.0%} of the time the device waits for data; raise train.workers, or put the"
            " images on a faster disk, in shards of their final size (flowmatch shard)"
        )
