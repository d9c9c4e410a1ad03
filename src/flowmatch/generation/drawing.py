"""Drawing samples: noise in, samples out, a batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.flow import Cond, Flow
from flowmatch.generation.compiling import Integrate, compile_integration, compile_network
from flowmatch.generation.job import SampleJob
from flowmatch.guidance import CountNFE
from flowmatch.sampling import bind, noise, sample, step_noise
from flowmatch.solvers import TimeField
from flowmatch.tensors import send, to_uint8


class Drawn(NamedTuple):
    """Some samples as they are stored, on the CPU."""

    seeds: Sequence[int]
    x: Tensor
    """uint8 [N, C, H, W] of images, float32 [N, *D] of anything else."""
    labels: list[int] | None

    def rows(self, start: int, stop: int) -> Drawn:
        """Some of them."""
        labels = None if self.labels is None else self.labels[start:stop]
        return Drawn(self.seeds[start:stop], self.x[start:stop], labels)


class Drawer:
    """Draws the samples of a job on one device.

    Args:
        flow: the model, on the device.
        job: what to draw.
        precision: a context that sets what is computed in, e.g. `accelerator.autocast`.
        weak: the weak model of autoguidance, on the device.
    """

    def __init__(
        self,
        flow: Flow,
        job: SampleJob,
        *,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]],
        weak: Flow | None = None,
    ) -> None:
        self.job, self.device = job, device
        self.shape, self.num_classes, self.path = flow.shape or (), flow.num_classes, flow.path
        self.decode, self.decoded_shape = flow.decode, flow.decoded_shape or ()
        self.dealt = job.dealt(flow.num_classes)
        self.precision = precision
        # what is done once in a while, in batches of other sizes, is not compiled
        self._plain = job.guidance.around(flow, path=flow.path, weak=weak)
        if job.compile == "step":
            flow = compile_network(flow)
            weak = None if weak is None else compile_network(weak)
        self._counted = CountNFE(flow)
        self._field = job.guidance.around(self._counted, path=flow.path, weak=weak)
        self._whole: Integrate | None = None
        if job.compile == "grid":
            self._whole = compile_integration(self._integrate)
        self.evaluations = 0
        """Network evaluations so far, summed over samples."""

    def draw(self, seeds: Sequence[int], *, size: int) -> Drawn:
        """The samples of some seeds.

        Args:
            seeds: at most `size` of them.
            size: the batch that a compiled model sees, whatever is left for the last one: it is
                filled up with repeated samples, so that nothing is compiled twice.
        """
        asked = list(seeds)
        filled = asked
        if self.job.compile != "off":
            filled = asked + [asked[-1]] * (size - len(asked))
        x0, cond = self.start(filled)
        self._counted.nfe = 0
        with self.precision():
            if self._whole is not None:
                with torch.no_grad():
                    x1 = self._whole(x0, cond)
            else:
                field, job = self._field, self.job
                x1 = sample(
                    field, x0, job.solver, cond, path=self.path, seeds=filled, stream=job.stream
                )
            x1 = self.decode(x1[: len(asked)]).float()
        self.evaluations += self._counted.nfe * len(asked)
        x1 = to_uint8(x1) if x1.ndim == 4 else x1
        return Drawn(asked, x1.cpu(), self.job.labels(self.num_classes, asked))

    def start(self, seeds: Sequence[int]) -> tuple[Tensor, Cond | None]:
        """Noise and conditions of samples, on the device."""
        x0 = send(noise(seeds, self.shape, stream=self.job.stream), self.device)
        return x0, self.dealt(seeds, self.device)

    def time_field(self, seeds: Sequence[int], cond: Cond | None) -> TimeField:
        """The `f(x, t)` that the solver integrates for some samples, never compiled."""
        fresh = step_noise(list(seeds), stream=self.job.stream)
        return bind(self._plain, cond, path=self.path, noise=fresh)

    def first_steps(self, seeds: Sequence[int], count: int) -> None:
        """Make the first steps of an integration, to see what they take."""
        x0, cond = self.start(seeds)
        with torch.no_grad(), self.precision():
            steps = self.job.solver.trajectory(self.time_field(seeds, cond), x0)
            for _, _ in zip(range(count), steps, strict=False):
                pass
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _integrate(self, x0: Tensor, cond: Cond | None) -> Tensor:
        return self.job.solver.integrate(bind(self._field, cond, path=self.path), x0)


def draw_all(drawer: Drawer, seeds: Sequence[int], batch: int) -> Iterator[Drawn]:
    """All samples of some seeds, in batches that are halved where the memory does not do."""
    batch = max(1, min(batch, len(seeds)))
    done = 0
    while done < len(seeds):
        drawn = _attempt(drawer, seeds[done : done + batch], batch)
        if drawn is None:
            torch.accelerator.memory.empty_cache()
            warnings.warn(
                f"out of memory with --bspp {batch}; going on with {batch // 2}", stacklevel=2
            )
            batch //= 2
            continue
        yield drawn
        done += len(drawn.seeds)


def _attempt(drawer: Drawer, seeds: Sequence[int], batch: int) -> Drawn | None:
    """A batch; None if it does not fit into memory (its frames are gone when this returns)."""
    try:
        return drawer.draw(seeds, size=batch)
    except torch.OutOfMemoryError:
        if batch == 1:
            raise
        return None
