"""Work beside the training, one piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Does one thing at a time in a thread; what goes wrong there is raised where it is waited for.

    A process that ends waits for it, unless it is killed.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)  # its thread starts with the first work
        self._pending: Future[object] | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin to do something, once what was begun before is done."""
        self.finish()
        self._pending = self._pool.submit(work)

    def finish(self) -> None:
        """Wait for what was begun last, and raise what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
