"""Where the time of a training step goes: clocked phases, and a trace to look at."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from flowmatch.training.cost import peak_rate
from flowmatch.training.distributed import precision_of
from flowmatch.training.settings import PROFILED_STEPS
from flowmatch.training.tracking import Tracker

Phase = Literal["data", "forward", "backward", "optimizer", "ema"]

_WARM_UP, _PLAIN, _CLOCKED, _TRACED = 10, 10, 10, 3
"""Steps until everything is compiled and chosen; at full speed; with clocks; in the trace."""

assert _WARM_UP + _PLAIN + _CLOCKED + _TRACED == PROFILED_STEPS


class Clock:
    """Seconds of each phase of the steps, while it is on; else a phase costs nothing.

    While it marks, phases are named in a trace instead, and nothing waits for the device.

    A phase begins and ends when the device has done all before: phases do not overlap, so a clocked
    step takes a little longer than others.

    Args:
        device: where the steps are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.on = self.marks = False
        self.seconds: dict[Phase, float] = {}

    @contextlib.contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """What is done inside belongs to this phase."""
        if self.marks:
            with record_function(name):
                yield
            return
        if not self.on:
            yield
            return
        began = self.now()
        yield
        ended = self.now()
        self.seconds[name] = self.seconds.get(name, 0.0) + ended - began

    def now(self) -> float:
        """The time, once the device has done all that it was given."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


class Profile:
    """Follows the first steps of a run, and says where their time went.

    Ten steps warm up, ten run at full speed, ten are clocked by phase and three are traced; after
    these the run goes on as it is.

    Args:
        clock: of the trainer's phases.
        run_dir: gets `profile/trace-RANK.json`, which Perfetto (https://ui.perfetto.dev) shows.
        accelerator: the processes.
        module: what is trained, whose gradients the processes exchange.
        batch: images of a step, over all processes.

    Set `forward_flops`, the operations of one image's forward pass, before it is told.
    """

    def __init__(
        self,
        clock: Clock,
        run_dir: Path,
        accelerator: Accelerator,
        module: nn.Module,
        *,
        batch: int,
    ) -> None:
        self._clock, self._accelerator = clock, accelerator
        self._path = run_dir / "profile" / f"trace-{accelerator.process_index}.json"
        self._batch = batch
        trained = [p for p in module.parameters() if p.requires_grad]
        self._gradient_bytes = sum(p.numel() * p.element_size() for p in trained)
        self.forward_flops = 0
        self._steps = 0
        self._trace: profile | None = None
        self._idle: float | None = None
        self._began = self._full_speed = self._clocked = 0.0

    def step_done(self) -> bool:
        """Count a step; whether it was the last that is profiled."""
        self._steps += 1
        if self._steps == _WARM_UP:
            self._began = self._clock.now()
        elif self._steps == _WARM_UP + _PLAIN:
            self._full_speed = (self._clock.now() - self._began) / _PLAIN
            self._clock.on, self._began = True, self._clock.now()
        elif self._steps == _WARM_UP + _PLAIN + _CLOCKED:
            self._clocked = (self._clock.now() - self._began) / _CLOCKED
            self._clock.on = False
            self._start_trace()
        elif self._steps == PROFILED_STEPS:
            self._end_trace()
        return self._steps == PROFILED_STEPS

    def tell(self, tracker: Tracker, step: int, images: int) -> None:
        """Say and record what was found; all processes call it."""
        found = self.record()
        tracker.record(step, {"images": images, "profile": found})
        for line in lines_of(found):
            tracker.say(step, line)

    def record(self) -> dict[str, Any]:
        """What was found, as plain data; all processes call it."""
        seconds = {name: s / _CLOCKED for name, s in self._clock.seconds.items()}
        precision, device = precision_of(self._accelerator), self._accelerator.device
        # a backward pass has twice the operations of a forward pass
        rate = 3 * self.forward_flops * self._batch / self._full_speed
        peak = peak_rate(device, precision) * self._accelerator.num_processes
        return {
            "step_seconds": self._full_speed,
            "clocked_step_seconds": self._clocked,
            "images_per_second": self._batch / self._full_speed,
            "phases": {**seconds, "other": max(self._clocked - sum(seconds.values()), 0.0)},
            "communication_seconds": self._exchange_seconds(),
            "communication_bytes": self._gradient_bytes if self._several else 0,
            "idle": self._idle,
            "flops_per_second": rate,
            "peak_flops_per_second": peak,
            "utilisation": rate / peak,
            "trace": str(self._path),
        }

    @property
    def _several(self) -> bool:
        processes: int = self._accelerator.num_processes
        return processes > 1

    def _start_trace(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._accelerator.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._trace = profile(activities=activities)
        self._trace.start()
        self._clock.marks = True

    def _end_trace(self) -> None:
        assert self._trace is not None
        self._clock.now()  # what is under way belongs to the trace
        self._trace.stop()
        self._clock.marks = False
        self._path.parent.mkdir(exist_ok=True)
        self._trace.export_chrome_trace(str(self._path))
        self._idle = _idle_share(self._trace)
        self._trace = None

    def _exchange_seconds(self) -> float:
        """How long the exchange of the gradients takes by itself: the best of three."""
        if not self._several:
            return 0.0
        buffer = torch.zeros(self._gradient_bytes // 4, device=self._accelerator.device)
        seconds = []
        for _ in range(4):  # the first one opens connections
            self._accelerator.wait_for_everyone()
            began = self._clock.now()
            dist.all_reduce(buffer)
            seconds.append(self._clock.now() - began)
        return min(seconds[1:])


def _idle_share(trace: profile) -> float | None:
    """Share of the traced time in which a GPU computes nothing; None without a GPU."""
    events: list[Any] = [*(trace.events() or ())]  # type: ignore[no-untyped-call]
    spans: list[tuple[float, float]] = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    )
    if not spans:
        return None
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(end - max(start, until), 0.0)
        until = max(until, end)
    return 1 - busy / (until - spans[0][0])


def lines_of(record: dict[str, Any]) -> list[str]:
    """A profile for people: a line a phase."""
    step, clocked = record["step_seconds"], record["clocked_step_seconds"]
    lines = [
        f"a step takes {step * 1e3:.1f} ms: {record['images_per_second']:,.0f} images/s,"
        f" {record['utilisation']:.1%} of the device's peak"
    ]
    lines += [
        f"  {name:<10} {seconds * 1e3:9.1f} ms {seconds / clocked:7.1%}"
        for name, seconds in record["phases"].items()
    ]
    if record["communication_bytes"]:
        lines.append(
            f"  exchanging {record['communication_bytes'] / 2**20:.1f} MiB of gradients takes"
            f" {record['communication_seconds'] * 1e3:.1f} ms by itself; it is part of the backward"
            " pass, beside which most of it should be hidden"
        )
    if record["idle"] is not None:
        lines.append(f"  the device is idle {record['idle']:.1%} of the time")
    return [*lines, f"  trace: {record['trace']}, shown by https://ui.perfetto.dev"]
