"""What a log line says, summed on the device while the steps run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flowmatch.training.bins import BINS, bin_of


class Meter:
    """Sums on the device what a log line needs, so that no step waits for the host.

    Args:
        accelerator: the processes that the numbers are taken over, and their device.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._loss = torch.zeros((), device=accelerator.device)
        self._by_time = torch.zeros(BINS, 2, device=accelerator.device)  # sum and count
        self._bad = torch.full((), torch.inf, device=accelerator.device)
        self.grad_norm: Tensor | None = None
        self._steps: set[int] = set()
        self.start(0)

    def start(self, images: int, seconds: float = 0.0) -> None:
        """Start the clock, at so many images and seconds of training before."""
        self._seconds = self._seconds_read = seconds
        self._images_read = images
        self._since = time.perf_counter()

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

    def add(self, loss: Tensor, losses: Tensor, t: Tensor, step: int) -> None:
        """Count a part of a step.

        Args:
            loss: the part's share of the step's loss, a scalar.
            losses: the loss of each of its samples, [B].
            t: their times, [B].
            step: the step's number.
        """
        self._loss += loss
        self._bad = torch.where(loss.isfinite(), self._bad, self._bad.clamp(max=step + 1))
        losses = losses.float()
        self._by_time.index_add_(0, bin_of(t), torch.stack([losses, torch.ones_like(losses)], 1))
        self._steps.add(step)

    def read(self, images: int) -> dict[str, Any]:
        """Mean losses since the last call, over all processes, rate and time; starts anew.

        `loss_t` is the mean loss of the samples whose t fell into each tenth of [0, 1], None where
        none did. `seconds` is the training time from the first start of the run.
        """
        loss = self._accelerator.reduce(self._loss, "mean").item() / max(len(self._steps), 1)
        sums = self._accelerator.reduce(self._by_time, "sum").tolist()
        self._take_time()
        rate = (images - self._images_read) / (self._seconds - self._seconds_read)
        self._images_read, self._seconds_read = images, self._seconds
        self._loss.zero_()
        self._by_time.zero_()
        self._steps.clear()
        metrics: dict[str, Any] = {
            "loss": loss,
            "images_per_second": rate,
            "seconds": self._seconds,
            "loss_t": [total / count if count else None for total, count in sums],
        }
        if self.grad_norm is not None:
            metrics["grad_norm"] = float(self.grad_norm)
        return metrics

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite, in any process."""
        first = float(self._accelerator.gather(self._bad).min())
        return None if math.isinf(first) else int(first)

    def _take_time(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
