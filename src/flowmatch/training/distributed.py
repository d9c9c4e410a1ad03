"""Processes: starting them through Accelerate, and agreeing on when to stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from flowmatch.training.settings import Precision

_ACCELERATE_NAMES: dict[Precision, str] = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}


def start_processes(precision: Precision = "fp32") -> Accelerator:
    """The Accelerator of this process, on the best device that it has.

    Raises:
        ValueError: fp16 without a GPU; more processes asked for than were started.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError(
            "fp16 needs a CUDA device; use bf16 (-mp bf16) or fp32 (-mp no) on this machine"
        )
    # without this, Accelerate leaves processes that torchrun started on CPUs each on its own
    on_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=_ACCELERATE_NAMES[precision])
    asked_for = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked_for:
        raise ValueError(
            f"{asked_for} processes were asked for, but Accelerate joined"
            f" {accelerator.num_processes}; on CPUs start them with torchrun --nproc_per_node"
        )
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return accelerator


class StopRequest:
    """SIGTERM and Ctrl-C as a wish that all processes learn of at the same step.

    As a context manager it takes over the two signals; a second Ctrl-C interrupts at once. Each
    process calls `agreed` once a step: the wishes are summed by a small reduction that travels
    while the step computes and is read a step later, so nobody waits for it.
    """

    def __init__(self) -> None:
        self._wished = False
        self._previous: dict[int, Any] = {}
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[dist.Work | None, torch.Tensor] | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        if dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)  # this process is in it
            self._group = group
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        if kind is None and self._pending is not None and self._pending[0] is not None:
            self._pending[0].wait()

    def agreed(self) -> bool:
        """Whether any process was asked to stop; the same answer in all of them."""
        if self._group is None:
            return self._wished
        stop = False
        if self._pending is not None:
            work, wishes = self._pending
            if work is not None:
                work.wait()
            stop = bool(wishes.item())
        wishes = torch.tensor(int(self._wished))
        self._pending = (dist.all_reduce(wishes, group=self._group, async_op=True), wishes)
        return stop

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._wished = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def precision_of(accelerator: Accelerator) -> Precision:
    """What the processes compute in, by our names."""
    name: str = accelerator.mixed_precision
    return next(ours for ours, theirs in _ACCELERATE_NAMES.items() if theirs == name)


def describe(accelerator: Accelerator) -> str:
    """One line on what runs where, e.g. "2 processes on cpu, bf16, 1 thread each"."""
    n = accelerator.num_processes
    threads = torch.get_num_threads()
    line = f"{n} process{'es' if n > 1 else ''} on {accelerator.device.type}"
    if accelerator.device.type == "cuda":
        line += f" ({torch.cuda.get_device_name()})"
    line += f", {precision_of(accelerator)}, {threads} CPU thread{'s' if threads > 1 else ''} each"
    if n == 1 and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        line += " (for more CPU processes, start it with torchrun --nproc_per_node)"
    return line
