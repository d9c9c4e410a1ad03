"""A model that gives the same bits in any batch, and processes without Accelerate."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.generation import SampleJob


class Pull(nn.Module):
    """A velocity towards a colour of the class, one number at a time: no batch changes a bit."""

    num_classes = 10

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        label = torch.full_like(t, 10.0) if cond is None else cond["label"].to(x.dtype)
        return (label / 5 - 1).reshape(-1, *(1,) * (x.ndim - 1)) - x


@dataclass
class Process:
    """What `generate` needs of an Accelerator."""

    process_index: int = 0
    num_processes: int = 1
    meet: Callable[[], object] = lambda: None
    device: torch.device = torch.device("cpu")
    autocast = staticmethod(contextlib.nullcontext)

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        self.meet()


@pytest.fixture
def pull() -> fm.Flow:
    """A class-conditional flow of 8x8 colour images."""
    return fm.Flow(Pull(), shape=(3, 8, 8)).eval()


@pytest.fixture
def job(tmp_path) -> Callable[..., SampleJob]:
    """A job into `tmp_path/NAME` of so many samples; anything else by name."""

    def make(name: str = "a", count: int = 25, **options: object) -> SampleJob:
        given = {"seeds": range(count), "solver": fm.solvers.Euler(steps=2), **options}
        return SampleJob(save_dir=tmp_path / name, **given)

    return make


@pytest.fixture
def in_processes() -> Callable[[Callable[[Process], object], int], None]:
    """Runs something in several threads that pass for processes and wait for each other."""

    def run(work: Callable[[Process], object], count: int) -> None:
        barrier = threading.Barrier(count, timeout=60)
        errors: list[BaseException] = []

        def one(index: int) -> None:
            try:
                work(Process(index, count, barrier.wait))
            except BaseException as error:
                errors.append(error)
                barrier.abort()

        threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors

    return run


@pytest.fixture
def one() -> Process:
    """The only process."""
    return Process()


@pytest.fixture
def contents() -> Callable[[Path, str], dict[str, bytes]]:
    """The files of a folder by name."""

    def read(folder: Path, pattern: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(folder.glob(pattern))}

    return read
