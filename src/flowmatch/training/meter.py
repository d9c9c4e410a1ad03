"""What a log line says, summed on the device while the steps run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flowmatch.losses import SampleLosses
from flowmatch.training.bins import BINS, bin_of
from flowmatch.training.spikes import Step


class Meter:
    """Keeps on the device what a log line needs, so that no step waits for the host.

    Args:
        accelerator: the processes that the numbers are taken over, and their device.
        max_grad_norm: steps with a larger gradient count as clipped; None: none does.
    """

    def __init__(self, accelerator: Accelerator, *, max_grad_norm: float | None = None) -> None:
        self._accelerator = accelerator
        self._max_grad_norm = max_grad_norm
        self._losses: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}
        self._by_time = torch.zeros(BINS, 2, device=accelerator.device)  # sum and count
        self.start(0)

    def start(self, images: int, seconds: float = 0.0) -> None:
        """Start the clock, at so many images and seconds of training before."""
        self._seconds = self._seconds_read = seconds
        self._images_read = images
        self._since = time.perf_counter()
        self._clear()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the rate and the seconds what is done meanwhile besides training."""
        if self._accelerator.device.type != "cpu":  # steps still under way count as training
            torch.accelerator.synchronize(self._accelerator.device)
        self._take_time()
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def add(self, step: int, losses: SampleLosses, *, parts: int = 1) -> None:
        """Count one of the equal parts of a step.

        Args:
            step: the step's number.
            losses: those of its samples.
            parts: how many parts this process has of the step.
        """
        weighted = (losses.weight * losses.loss).float()
        mean = weighted.mean() / parts
        self._losses[step] = self._losses[step] + mean if step in self._losses else mean
        counted = torch.stack([weighted, losses.weight.float()], 1)
        self._by_time.index_add_(0, bin_of(losses.t), counted)

    def add_gradient(self, step: int, norm: Tensor) -> None:
        """Note the norm of a step's gradient before clipping."""
        self._norms[step] = norm.detach()

    def steps(self) -> list[Step]:
        """The steps since the last `read`, their losses taken over all processes."""
        if not self._losses:
            return []
        losses = self._accelerator.reduce(torch.stack([*self._losses.values()]), "mean").tolist()
        nothing = torch.zeros((), device=self._accelerator.device)
        norms = torch.stack([self._norms.get(step, nothing) for step in self._losses]).tolist()
        return [Step(*known) for known in zip(self._losses, losses, norms, strict=True)]

    def read(self, images: int, steps: list[Step], *, waited: float = 0.0) -> dict[str, Any]:
        """The numbers of the steps since the last call, as `steps` gave them; starts anew.

        `loss_t` is the mean loss of the samples whose t fell into each tenth of [0, 1], None where
        none did. `seconds` is the training time from the first start of the run. `grad_norm` is
        of the last step, `clipped` the share of steps whose gradient was larger than allowed.
        `data_wait` is the share of the training time in which the device waited for data, the mean
        over the processes.

        Args:
            images: seen by now.
            steps: as `steps` gave them.
            waited: seconds that this process's device waited for data since the last call.
        """
        sums = self._accelerator.reduce(self._by_time, "sum").tolist()
        self._take_time()
        elapsed = self._seconds - self._seconds_read
        share = torch.tensor(waited / elapsed, device=self._accelerator.device)
        metrics: dict[str, Any] = {
            "loss": sum(step.loss for step in steps) / max(len(steps), 1),
            "images_per_second": (images - self._images_read) / elapsed,
            "data_wait": float(self._accelerator.reduce(share, "mean")),
            "seconds": self._seconds,
            "loss_t": [total / count if count else None for total, count in sums],
        }
        self._images_read, self._seconds_read = images, self._seconds
        if steps and self._norms:
            metrics["grad_norm"] = steps[-1].grad_norm
        if steps and self._max_grad_norm is not None:
            clipped = sum(step.grad_norm > self._max_grad_norm for step in steps)
            metrics["clipped"] = clipped / len(steps)
        self._clear()
        return metrics

    def _clear(self) -> None:
        self._losses.clear()
        self._norms.clear()
        self._by_time.zero_()

    def _take_time(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
