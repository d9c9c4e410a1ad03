"""What a training run can be told: the `train` node of a config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from flowmatch.augmentation import AugmentationConfig
from flowmatch.component import Component
from flowmatch.training.compiling import Compile
from flowmatch.training.ema import EMAConfig, Exponential, Power, Profile
from flowmatch.training.optim import AdamW, OptimizerConfig
from flowmatch.training.schedules import Constant, ScheduleConfig
from flowmatch.training.sharding import Sharding
from flowmatch.training.snapshots import PostHoc

Precision = Literal["fp32", "fp16", "bf16"]

_UNITS = ("steps", "images")
_CADENCES = ("save_every", "sample_every", "evaluate_every")
LEAST_EVALUATED = 10
"""Samples of an evaluation: fewer say nothing, and some metrics have no value for them."""
PROFILED_STEPS = 33
"""Steps that a profile takes."""
_COUNTS = ("batch", "accumulate", "lr_for_batch", "log_every_steps", "keep_last", "samples")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Component):
    """A training run. Lengths can be given in steps or in images, never both.

    Args:
        steps, images: how long to train; exactly one of them.
        batch: images an optimizer step, over all processes and accumulated parts.
        accumulate: parts that a process works a batch off in, to save memory.
        micro_batch: instead of `accumulate`, images that a process computes at once; "auto": as
            many as its memory holds. Neither changes the result.
        lr: peak learning rate.
        lr_for_batch: the batch that `lr` was chosen for. At another one it is multiplied by the
            square root of their ratio, by which the noise of adaptive optimizers' steps keeps its
            share (Malladi et al. 2022); None takes `lr` as it is.
        optimizer, schedule: see their own pages.
        ema: an average of the weights, or several; the first is the run's own, which is sampled and
            evaluated.
        post_hoc: averages of which snapshots are kept, so that an average of another width can be
            had after the training; None keeps none.
        augment: how training images are moved; the network is told by its condition `augment`.
        precision: "fp32", "bf16", or "fp16" with a loss scaler (GPU only).
        sharding: "none": each process has all weights; "fsdp": its part of the weights, gradients,
            moments and averages, with the same result. Of one process, both are the same.
        max_grad_norm: gradients are clipped to this global norm; None leaves them.
        spike_factor: a loss above so many times the usual one, and far above its noise, sends the
            run back to its last checkpoint, once, and leaves that batch out; None does so only for
            NaN and infinity.
        seed: everything random in the run follows from it.
        workers: processes that decode images of data sets that do not fit in memory.
        memory_format: layout of image networks and batches; "auto" is channels_last on a GPU and
            contiguous elsewhere, whichever is faster there.
        compile: torch.compile of the "network" or of the "blocks" that it repeats, or "off"; "auto"
            compiles on a GPU alone. What was compiled is kept for later runs.
        profile: clock and trace the first 33 steps after a start or resume, and say where their
            time went.
        log_every_steps: the only moments, besides saving, sampling and evaluating, at which the
            device waits for the host.
        save_every_steps, save_every_images: distance of checkpoints; None of both saves at the end.
        keep_last: checkpoints kept; older ones are deleted once a newer one is safe.
        sample_every_steps, sample_every_images: distance of sample grids; None of both: no grids.
        samples: images in such a grid.
        evaluate_every_steps, evaluate_every_images: distance of evaluations, of which the last step
            has one too; None of both: no evaluations. The best one's checkpoint is kept besides.
        evaluate_samples: samples drawn for such an evaluation, fewer than a final one takes.
        evaluate_features: what it compares samples by: "data" (features learned from the data
            itself), "inception" or "dinov2".
    """

    steps: int | None = None
    images: int | None = None
    batch: int = 256
    accumulate: int = 1
    micro_batch: int | Literal["auto"] | None = None
    lr: float = 2e-4
    lr_for_batch: int | None = None
    optimizer: OptimizerConfig = AdamW()
    schedule: ScheduleConfig = Constant()
    ema: EMAConfig = Exponential()
    post_hoc: PostHoc | None = None
    augment: AugmentationConfig | None = None
    precision: Precision = "fp32"
    sharding: Sharding = "none"
    max_grad_norm: float | None = 1.0
    spike_factor: float | None = 5.0
    seed: int = 0
    workers: int = 4
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    compile: Compile = "auto"
    profile: bool = False
    log_every_steps: int = 50
    save_every_steps: int | None = None
    save_every_images: int | None = None
    keep_last: int = 3
    sample_every_steps: int | None = None
    sample_every_images: int | None = None
    samples: int = 64
    evaluate_every_steps: int | None = None
    evaluate_every_images: int | None = None
    evaluate_samples: int = 1000
    evaluate_features: Literal["data", "inception", "dinov2"] = "data"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.images is None):
            raise ValueError(
                "give train.steps or train.images, exactly one of them; set the other to null"
            )
        for name in _CADENCES:
            if getattr(self, f"{name}_steps") and getattr(self, f"{name}_images"):
                raise ValueError(
                    f"give train.{name}_steps or train.{name}_images, not both; set the other to"
                    " null"
                )
        lengths = [f"{name}_{unit}" for name in _CADENCES for unit in _UNITS]
        for name in [*_UNITS, *lengths, *_COUNTS]:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train.{name} must be at least 1, got {value}")
        if self.micro_batch is not None and self.accumulate > 1:
            raise ValueError("give train.accumulate or train.micro_batch, not both")
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise ValueError(f"train.micro_batch must be at least 1, got {self.micro_batch}")
        if self.sharding == "fsdp" and self.micro_batch == "auto":
            raise ValueError(
                "train.micro_batch=auto lets each process try for itself, and with"
                " train.sharding=fsdp none can; give train.micro_batch as a number"
            )
        if self.sharding == "fsdp" and self.precision == "fp16":
            raise ValueError(
                "train.sharding=fsdp computes in fp32 or bf16, not in fp16; use -mp bf16, or"
                " train.sharding=none"
            )
        if self.evaluate_samples < LEAST_EVALUATED:
            raise ValueError(
                f"train.evaluate_samples must be at least {LEAST_EVALUATED}, got"
                f" {self.evaluate_samples}"
            )
        for name in ("lr", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"train.{name} must be positive and finite, got {value}")
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise ValueError(f"train.spike_factor must be above 1, got {self.spike_factor}")
        named = [profile.name for profile in self._asked_for]
        if not named:
            raise ValueError("train.ema is an empty list; leave it out for the usual average")
        if twice := [name for name in named if named.count(name) > 1]:
            raise ValueError(
                f"train.ema has {twice[0]} twice; averages differ in decay, half-life or std"
            )
        if self.profile and self.total_steps < PROFILED_STEPS:
            raise ValueError(
                f"train.profile takes {PROFILED_STEPS} steps, but the run has {self.total_steps}"
            )
        if self.workers < 0:
            raise ValueError(f"train.workers cannot be negative, got {self.workers}")

    def channels_last_on(self, device: torch.device) -> bool:
        """Whether images are laid out with their channels last on a device."""
        if self.memory_format == "auto":
            return device.type == "cuda"
        return self.memory_format == "channels_last"

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        total = self._in_steps(self.steps, self.images)
        assert total is not None
        return total

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All averages of the run, its own first; those of the snapshots are among them."""
        stds = self.post_hoc.stds if self.post_hoc is not None else ()
        return tuple(dict.fromkeys((*self._asked_for, *(Power(std=std) for std in stds))))

    @property
    def snapshot_every(self) -> int | None:
        """Steps between snapshots of averages, or None."""
        kept = self.post_hoc
        return None if kept is None else self._in_steps(kept.every_steps, kept.every_images)

    def snapshot_at(self, step: int) -> bool:
        """Whether snapshots are kept after so many steps."""
        every = self.snapshot_every
        return every is not None and (step % every == 0 or step == self.total_steps)

    def snapshots_after(self, step: int) -> int:
        """How many times snapshots are kept after so many steps."""
        every, total = self.snapshot_every, self.total_steps
        if every is None or step >= total:
            return 0
        return total // every - step // every + (total % every > 0)

    @property
    def save_every(self) -> int | None:
        """Steps between checkpoints, or None."""
        return self._in_steps(self.save_every_steps, self.save_every_images)

    @property
    def sample_every(self) -> int | None:
        """Steps between sample grids, or None."""
        return self._in_steps(self.sample_every_steps, self.sample_every_images)

    @property
    def evaluate_every(self) -> int | None:
        """Steps between evaluations, or None."""
        return self._in_steps(self.evaluate_every_steps, self.evaluate_every_images)

    @property
    def peak_lr(self) -> float:
        """The learning rate that suits the batch, before its schedule."""
        return self.lr * math.sqrt(self.batch / (self.lr_for_batch or self.batch))

    def lr_at(self, step: int) -> float:
        """The learning rate of the step with this (zero-based) number."""
        factor = self.schedule.factor(step, total_steps=self.total_steps, batch=self.batch)
        return self.peak_lr * factor

    @property
    def _asked_for(self) -> tuple[Profile, ...]:
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)

    def _in_steps(self, steps: int | None, images: int | None) -> int | None:
        return math.ceil(images / self.batch) if images is not None else steps
