"""Batches in a given order, decoded ahead of time by worker processes where that pays."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from flowmatch.data.batch import Batch
from flowmatch.data.dataset import Dataset

Request = tuple[Tensor, Tensor]
"""What a batch is made of: indices [B] int64 and uniforms [B, 4] in [0, 1)."""

_Foreseen = tuple[Tensor, Tensor, Tensor]
"""A request, and the indices of a later one."""

_FORESEEN = 8
"""Steps by which it is later: time to open what lies in a distant store."""


def stream(
    dataset: Dataset,
    requests: Iterable[Request],
    *,
    workers: int,
    device: torch.device | str,
    lanes: Sequence[Tensor] | None = None,
) -> Iterator[Batch]:
    """The batches of `requests`, in their order, on `device`.

    The batches do not depend on the number of workers. `requests` may be endless: it is read only
    as far ahead as the workers prefetch. A set in memory is indexed right here, without workers.

    Args:
        dataset: where the samples come from.
        requests: for each batch the indices [B] and the uniforms [B, 4] of its augmentation.
        workers: processes that decode ahead of time; 0 decodes in this process when asked.
        device: where the batches are wanted. For a GPU they pass through pinned memory.
        lanes: of the first requests, and again of as many that follow, the lane of each row (see
            `Order.lanes`); a lane then keeps its worker. None: each request goes to one worker.
    Raises:
        ValueError: `workers` is negative; while iterating, an image cannot be used.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}; pass 0 to decode in this process, or more")
    device = torch.device(device)
    if dataset.in_memory or workers == 0:
        return (dataset.raw(*request).to(device).as_float() for request in requests)
    if lanes is None:
        unforeseen = ((indices, uniforms, indices[:0]) for indices, uniforms in requests)
        answers = _from_workers(dataset, unforeseen, workers, device)
        return (batch.as_float() for batch in answers)
    return _joined(dataset, requests, shares(lanes, workers), device)


def shares(lanes: Sequence[Tensor], workers: int) -> list[list[int]]:
    """How many rows of each request every worker gets: whole lanes, neighbours together.

    Args:
        lanes: of each request, the lane of each row, increasing.
        workers: how many there are; with fewer lanes, only so many get any.
    """
    every = torch.from_numpy(np.unique(torch.cat([*lanes]).numpy()))
    workers = min(workers, len(every))
    owners = [torch.searchsorted(every, own) * workers // len(every) for own in lanes]
    return [owner.bincount(minlength=workers).tolist() for owner in owners]


def _joined(
    dataset: Dataset, requests: Iterable[Request], sizes: list[list[int]], device: torch.device
) -> Iterator[Batch]:
    """Batches that the workers make together, each its own share of every one."""
    workers = len(sizes[0])
    foreseen = _with_later(requests, _FORESEEN * len(sizes))
    portions = (
        portion
        for request, own in zip(foreseen, cycle(sizes), strict=False)
        for portion in zip(*(torch.split(t, own) for t in request), strict=True)
    )
    # a DataLoader deals requests to its workers in turns: share k of all of them to worker k
    answers = _from_workers(dataset, portions, workers, device, ahead=2 * workers)
    while together := list(islice(answers, workers)):
        yield Batch.joined(together).as_float()


def _with_later(requests: Iterable[Request], distance: int) -> Iterator[_Foreseen]:
    """Each request with the indices of the one so much later, at the end with its own."""
    waiting: deque[Request] = deque()
    for request in requests:
        waiting.append(request)
        if len(waiting) > distance:
            yield (*waiting.popleft(), request[0])
    for request in waiting:
        yield (*request, request[0])


def _from_workers(
    dataset: Dataset,
    requests: Iterable[_Foreseen],
    workers: int,
    device: torch.device,
    *,
    ahead: int = 2,
) -> Iterator[Batch]:
    """The raw batches of requests, on the device; each worker is `ahead` by so many."""
    pinned = device.type == "cuda"
    # more workers than cores are no mistake: they wait for disks
    warnings.filterwarnings("ignore", "This DataLoader will create")
    loader: DataLoader[Batch | _Failure] = DataLoader(
        _Requested(dataset),
        sampler=requests,  # with batch_size=None, an index is a whole request
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=ahead,
        pin_memory=pinned,
        generator=torch.Generator(),  # or torch would draw from the global one
        worker_init_fn=_shield_from_signals,
        # Forking starts a worker at once; otherwise each imports torch and copies the file list.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    for answer in loader:
        if isinstance(answer, _Failure):
            raise ValueError(answer.message)
        yield answer.to(device, non_blocking=pinned)


@dataclass(frozen=True)
class _Failure:
    """A user's mistake met in a worker. Raised there, it would arrive as a torn traceback."""

    message: str


class _Requested(TorchDataset[Batch | _Failure]):
    """A data set as the workers of a DataLoader see it: an index is a whole request.

    Images travel as uint8, and become float only on the device.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, request: _Foreseen) -> Batch | _Failure:
        indices, uniforms, later = request
        try:
            self.dataset.expect(torch.cat([indices, later]))
            return self.dataset.raw(indices, uniforms)
        except ValueError as error:
            return _Failure(str(error))


def _unchanged(answer: Any) -> Any:
    return answer


def _shield_from_signals(worker: int) -> None:
    """Let no signal to the process group end a worker: the main process may still want to save.

    Ctrl-C and a scheduler's SIGTERM reach the workers too. They ignore them, except a SIGTERM from
    the main process itself. Without that process they end by themselves (torch looks for it).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":  # elsewhere nothing tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    """End this process at the first SIGTERM that `parent` sends."""
    assert sys.platform == "linux"
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
