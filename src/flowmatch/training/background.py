"""Work beside the training: one piece at a time, and by several processes together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch.distributed as dist

from flowmatch.training.shards import Shard
from flowmatch.training.weights import first_line


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


class Writers:
    """Processes that make one folder together: what one does, all wait for.

    What goes wrong in one of them ends the work of all. Their messages go over a group of their
    own, on the CPU, so they can work in threads while others talk.

    Args:
        group: the processes; None: this one by itself.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.shard: Shard | None = None
        """Which of the shards is this process's; None: there are none."""
        if group is not None:
            self.shard = Shard(dist.get_rank(group) + 1, dist.get_world_size(group))

    def all(self, work: Callable[[], object]) -> None:
        """Every process does it.

        Raises:
            OSError: another process could not.
        """
        if self._group is None:
            work()
            return
        error: Exception | None = None
        try:
            work()
        except Exception as found:
            error = found
        own = None if error is None else first_line(error)
        said: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(said, own, group=self._group)
        if error is not None:
            raise error
        for number, text in enumerate(said):
            if text is not None:
                raise OSError(f"process {number} could not write: {text}")

    def first(self, work: Callable[[], object]) -> None:
        """The first process does it."""
        is_first = self.shard is None or self.shard.number == 1
        self.all(work if is_first else _nothing)


def _nothing() -> None:
    """What the others do."""
