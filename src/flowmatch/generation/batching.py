"""Finding the batch size."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from flowmatch.generation.drawing import Drawer

_WORTH_IT = 1.05
"""A larger batch must be faster by this much, in images a second."""
_PROBES = 3


def find_batch(drawer: Drawer, count: int) -> int:
    """The batch size for `count` samples: a power of two.

    On a GPU it is the largest that fits into memory, since the fuller it is the better; on a CPU
    the batch is doubled as long as images a second grow by 5% a doubling, as beyond that larger
    batches only leave the caches. The first steps of an integration decide. The samples do not
    depend on it.
    """
    most = 1 << (count - 1).bit_length()

    def probe(batch: int) -> None:
        drawer.first_steps(range(batch), 2)

    if drawer.device.type == "cpu":
        return fastest(lambda batch: _seconds(probe, batch), most)
    return largest(probe, most)


def largest(probe: Callable[[int], None], most: int) -> int:
    """The largest power of two, at most `most`, at which `probe` finds enough memory."""
    batch = 1
    while batch * 2 <= most and _fits(probe, batch * 2):
        batch *= 2
    torch.accelerator.memory.empty_cache()
    return batch


def fastest(seconds: Callable[[int], float], most: int) -> int:
    """The power of two, at most `most`, from which doubling brings less than 5% more a second.

    It takes two doublings that do not pay: 2 rows may need more than twice the time of 1, and yet 4
    much less than twice that of 2.
    """
    best, rate, worth, batch = 1, 1 / seconds(1), 1.0, 1
    while batch * 2 <= most and batch < 4 * best:
        batch, worth = batch * 2, worth * _WORTH_IT
        larger = batch / seconds(batch)
        if larger >= worth * rate:
            best, rate, worth = batch, larger, 1.0
    return best


def _fits(probe: Callable[[int], None], batch: int) -> bool:
    try:
        probe(batch)
    except torch.OutOfMemoryError:
        return False
    return True


def _seconds(probe: Callable[[int], None], batch: int) -> float:
    """The shortest of a few runs: whatever else the machine does only adds."""
    probe(batch)
    found = []
    for _ in range(_PROBES):
        began = time.perf_counter()
        probe(batch)
        found.append(time.perf_counter() - began)
    return min(found)
