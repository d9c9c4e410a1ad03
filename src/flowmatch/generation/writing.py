"""Writing in the background: files are encoded and written while the next batch is computed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 4
"""Pieces that may wait for each thread; more would only fill the memory."""


class BackgroundWriter(Generic[T]):
    """Calls `write` on pieces in worker threads, in any order.

    As a context manager it ends when all pieces are written. The first error of a thread is raised
    at the next `put`, or at the end; pieces that still wait are then dropped. An error in the body,
    Ctrl-C included, drops them too.

    Args:
        write: writes one piece, whole or not at all; called from several threads at once.
        threads: how many; None is one a CPU core, at most four.
    """

    def __init__(self, write: Callable[[T], None], *, threads: int | None = None) -> None:
        threads = threads or min(4, os.cpu_count() or 1)
        self._write = write
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        self._slots = threading.Semaphore(threads * (1 + AHEAD))
        self._error: BaseException | None = None
        self.waited = 0.0
        """Seconds that the caller spent waiting for the writing."""

    def put(self, piece: T) -> None:
        """Have a piece written; waits where too many do."""
        self._raise()
        began = time.perf_counter()
        self._slots.acquire()
        self.waited += time.perf_counter() - began
        self._pool.submit(self._write, piece).add_done_callback(self._done)

    def __enter__(self) -> BackgroundWriter[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        began = time.perf_counter()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None or self._error is not None)
        self.waited += time.perf_counter() - began
        if kind is None:
            self._raise()

    def _done(self, written: Future[None]) -> None:
        if not written.cancelled() and self._error is None:
            self._error = written.exception()
        self._slots.release()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
