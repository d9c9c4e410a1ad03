"""The gradients of a step, in portions that the memory holds."""

from __future__ import annotations

import contextlib
import warnings

import torch
from accelerate import Accelerator
from torch import nn

from flowmatch.flow import Flow
from flowmatch.losses import Learned, SampleLosses
from flowmatch.networks import dropouts_of
from flowmatch.training.draws import Split, seed_the_rest
from flowmatch.training.feed import Feed
from flowmatch.training.profiling import Clock
from flowmatch.training.result import TrainingFailed
from flowmatch.training.settings import TrainConfig

_REHEARSED = 2
"""Steps until the memory is at its highest: the optimizer makes its state after the first."""


class Gradients:
    """Adds up the gradients of a step's batch, in equal parts, over all processes.

    With `train.micro_batch: auto` the parts become smaller until they fit. A step is a function of
    the run's seed and of its number, so one that ran out of memory is computed again in more parts.

    A process that runs out of memory while it exchanges gradients leaves the others waiting. So
    several processes rehearse their first steps, each by itself, and agree on what fits all.

    Args:
        objective: flow and loss, as Accelerate prepared them.
        flow: the flow in it.
        learned: what the loss learns besides, or None.
        feed: gives the parts.
        clock: of the phases.
        config: says how the batch is dealt.
        accelerator: the processes.
    Raises:
        ValueError: the batch cannot be dealt so.
    """

    def __init__(
        self,
        objective: nn.Module,
        flow: Flow,
        learned: Learned | None,
        feed: Feed,
        clock: Clock,
        config: TrainConfig,
        accelerator: Accelerator,
    ) -> None:
        self._objective, self._flow, self._learned = objective, flow, learned
        self._feed, self._clock, self._accelerator = feed, clock, accelerator
        self._dropouts = dropouts_of(flow)
        self._shrinks = config.micro_batch == "auto"
        self._rehearsals = _REHEARSED if accelerator.num_processes > 1 else 0
        self.split = Split.of(config, accelerator.num_processes, accelerator.process_index)

    def compute(self, step: int, images: int) -> list[SampleLosses]:
        """Leave the gradients of a step in the weights; the losses of the parts.

        Args:
            step: its number.
            images: how many were seen before it.
        Raises:
            TrainingFailed: not even one image fits.
        """
        if not self._shrinks:
            return self._add_up(step, images)
        while self._rehearsals:
            fits = self._attempt(step, images, exchange=False) is not None
            self._forget()
            if self._fits_all(fits):
                self._rehearsals -= 1
                break
            self._shrink()
        if self._accelerator.num_processes > 1:
            return self._add_up(step, images)
        while (found := self._attempt(step, images)) is None:
            self._forget()
            self._shrink()
        return found

    def _add_up(self, step: int, images: int, *, exchange: bool = True) -> list[SampleLosses]:
        found: list[SampleLosses] = []
        split, accelerator = self.split, self._accelerator
        # data-parallel wrappers talk in forward passes too
        objective = self._objective if exchange else accelerator.unwrap_model(self._objective)
        parts = self._feed.parts(split, step, images)
        for _ in range(split.accumulate):
            with self._clock.phase("data"):
                part = next(parts)
            for number, layer in enumerate(self._dropouts):
                layer.rows = part.rows.for_purpose("dropout", number)
            seed_the_rest(part.rows, device=accelerator.device)
            last = exchange and len(found) + 1 == split.accumulate
            with contextlib.nullcontext() if last else accelerator.no_sync(self._objective):
                with self._clock.phase("forward"):
                    mean, losses = objective(part.x1, self._flow.known(part.cond), part.draws)
                with self._clock.phase("backward"):
                    accelerator.backward(mean / split.accumulate)
            found.append(losses)
        return found

    def _attempt(
        self, step: int, images: int, *, exchange: bool = True
    ) -> list[SampleLosses] | None:
        """The losses, or None where the memory did not suffice."""
        try:
            return self._add_up(step, images, exchange=exchange)
        except torch.OutOfMemoryError:
            return None  # and what the parts held is freed with their frames

    def _forget(self) -> None:
        """Undo what `_add_up` left behind."""
        self._objective.zero_grad()
        if self._learned is not None and self._learned.density is not None:
            self._learned.density.forget()

    def _fits_all(self, fits: bool) -> bool:
        failures = torch.tensor(float(not fits), device=self._accelerator.device)
        return float(self._accelerator.reduce(failures, "sum")) == 0

    def _shrink(self) -> None:
        before = self.split.size
        if before == 1:
            raise TrainingFailed(
                "out of memory with one image at once; choose a smaller network or images, or"
                " network.gradient_checkpointing"
            )
        self.split = self.split.smaller()
        torch.accelerator.memory.empty_cache()
        warnings.warn(
            f"out of memory with {before} images at once: {self.split.size} from now on, with the"
            " same result",
            stacklevel=2,
        )
