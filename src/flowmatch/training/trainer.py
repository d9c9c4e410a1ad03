"""The training loop, in the order in which it runs."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowmatch.data import Batch, Dataset, ShuffledOrder, stream
from flowmatch.flow import Cond, Flow
from flowmatch.losses import Draws, FlowMatching
from flowmatch.networks import dropouts_of
from flowmatch.pictures import columns_for, image_grid, scatter
from flowmatch.sampling import noise, sample
from flowmatch.solvers import Solver
from flowmatch.tensors import to_uint8
from flowmatch.training.checkpoint import Checkpoints, fit_weights, read_state, read_weights
from flowmatch.training.distributed import StopRequest
from flowmatch.training.draws import Split, draw, requests, seed_the_rest
from flowmatch.training.ema import EMA
from flowmatch.training.settings import TrainConfig
from flowmatch.training.tracking import Tracker


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says where it stood and how to go on."""


@dataclass(frozen=True)
class Result:
    """How a run ended: its last step, its last checkpoint, and whether it was asked to stop."""

    step: int
    checkpoint: Path
    stopped: bool


class _Objective(nn.Module):
    """Flow and loss as one module, so that data-parallel wrappers see a plain forward pass."""

    def __init__(self, flow: Flow, loss: FlowMatching) -> None:
        super().__init__()
        self.flow = flow
        self.loss = loss

    def forward(self, x1: Tensor, cond: Cond | None, draws: Draws) -> Tensor:
        return self.loss(self.flow, x1, cond, draws=draws)


class Trainer:
    """Trains a flow and keeps everything about it in a run directory.

    Every random number is a function of (seed, step, position in the batch), so a resumed run
    equals one that never stopped, and processes and accumulated parts only decide who computes.

    Args:
        flow: what is trained; moved to the accelerator's device.
        loss: the objective.
        dataset: the training data.
        config: the `train` node of the config.
        run_dir: the run directory, which exists.
        solver: how the sample grids are drawn.
        config_yaml: the resolved config, kept inside each checkpoint.
        accelerator: processes, device and precision.
    """

    def __init__(
        self,
        flow: Flow,
        loss: FlowMatching,
        dataset: Dataset,
        config: TrainConfig,
        *,
        run_dir: Path,
        solver: Solver,
        config_yaml: str,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.run_dir, self.solver = config, run_dir, solver
        self.config_yaml, self.accelerator = config_yaml, accelerator
        self.device = accelerator.device
        self.is_image = len(dataset.shape) == 3
        self.split = Split(
            config.batch, config.accumulate, accelerator.num_processes, accelerator.process_index
        )
        self.dataset = dataset.to(self.device) if self.device.type == "cuda" else dataset
        self.flow = flow.to(self.device).train()
        auto = "channels_last" if self.device.type == "cuda" else "contiguous"
        chosen = auto if config.memory_format == "auto" else config.memory_format
        self.channels_last = self.is_image and chosen == "channels_last"
        if self.channels_last:
            flow.to(memory_format=torch.channels_last)
        self.ema = EMA(flow)
        self.dropouts = dropouts_of(flow)
        optimizer = config.optimizer.build(flow.parameters(), config.lr)
        self.objective, self.optimizer = accelerator.prepare(_Objective(flow, loss), optimizer)
        self.checkpoints = Checkpoints(run_dir)
        self.step = 0
        self.images = 0
        self._meter = _Meter(accelerator)

    def resume(self, checkpoint: Path) -> None:
        """Take up the state of a checkpoint; call it before the first step."""
        state = read_state(checkpoint)
        for module, name in ((self.flow, "model"), (self.ema.module, "model_ema")):
            path = checkpoint / f"{name}.safetensors"
            fit_weights(module.get_submodule("network"), read_weights(path), path)
        self.step, self.images = state["step"], state["images"]
        if state["optimizer"] is not None:  # an imported model brings weights alone
            settings = [
                {k: v for k, v in group.items() if k != "params"}
                for group in self.optimizer.param_groups
            ]
            self.optimizer.load_state_dict(state["optimizer"])
            # the moments are the checkpoint's, the settings this run's: they may have been changed
            for group, own in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(own)
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def run(self) -> Result:
        """Train to the end, or until a signal asks to stop.

        Raises:
            TrainingFailed: the loss or the weights are no longer finite.
        """
        config = self.config
        tracker = Tracker(
            self.run_dir,
            total=config.total_steps,
            start=self.step,
            active=self.accelerator.is_main_process,
        )
        self._meter.restart_clock(self.images)
        stopped = False
        saved = self.step if self.step else None
        with contextlib.closing(tracker), StopRequest() as stop:
            while self.step < config.total_steps and not stopped:
                self.train_step()
                tracker.advance()
                stopped = stop.agreed()
                last = self.step == config.total_steps
                if stopped or last or _due(self.step, config.log_every_steps):
                    self._log(tracker)
                if stopped or last or _due(self.step, config.save_every):
                    self._save()
                    saved = self.step
                if _due(self.step, config.sample_every):
                    self._save_samples(tracker)
                if saved == self.step or _due(self.step, config.sample_every):
                    self._meter.restart_clock(self.images)
        if saved != self.step:
            self._save()
        path = self.checkpoints.folder / f"step{self.step:07d}"
        return Result(self.step, path, stopped and self.step < config.total_steps)

    def train_step(self) -> None:
        """One optimizer step on one global batch; nothing in it waits for the device."""
        config, parts = self.config, self.split.parts(self.config.seed, self.step)
        lr = config.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for i, part in enumerate(parts):
            batch = next(self._batches)
            draws = draw(part, self.dataset.shape, device=self.device)
            x1, draws = self._in_layout(batch.x1, draws)
            for number, layer in enumerate(self.dropouts):
                layer.rows = part.for_purpose("dropout", number)
            seed_the_rest(part, device=self.device)
            last = i + 1 == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss = self.objective(x1, self._conditions(batch.cond), draws) / len(parts)
                self.accelerator.backward(loss)
            self._meter.add(loss.detach(), self.step)
        if config.max_grad_norm is not None:
            self._meter.grad_norm = self.accelerator.clip_grad_norm_(
                self.flow.parameters(), config.max_grad_norm
            )
        self.optimizer.step()
        # on a CPU, fresh gradients each step cost a tenth of the step in page faults
        self.optimizer.zero_grad(set_to_none=self.device.type != "cpu")
        self.step += 1
        self.images += config.batch
        self.ema.update(config.ema.decay_at(self.step, batch=config.batch))

    @functools.cached_property
    def _batches(self) -> Iterator[Batch]:
        order = ShuffledOrder(len(self.dataset), self.config.seed)
        wanted = requests(
            order, self.split, seed=self.config.seed, step=self.step, images=self.images
        )
        return stream(self.dataset, wanted, workers=self.config.workers, device=self.device)

    def _in_layout(self, x1: Tensor, draws: Draws) -> tuple[Tensor, Draws]:
        if not self.channels_last:
            return x1, draws
        last = torch.channels_last
        noise = draws.noise.contiguous(memory_format=last)
        return x1.contiguous(memory_format=last), draws._replace(noise=noise)

    def _conditions(self, cond: dict[str, Tensor]) -> Cond | None:
        """What of the data's labels the network takes: all, or none if it is unconditional."""
        return cond if cond and self.flow.num_classes is not None else None

    def _log(self, tracker: Tracker) -> None:
        metrics = self._meter.read(self.images)
        if not math.isfinite(metrics["loss"]):
            raise self._failure("the loss", self._meter.first_bad_step())
        metrics = {"images": self.images, "lr": self.config.lr_at(self.step - 1), **metrics}
        tracker.log(self.step, metrics)

    def _save(self) -> None:
        bad = self._meter.first_bad_step()
        if bad is not None:
            raise self._failure("the loss", bad)
        norms = torch._foreach_norm([*self.flow.parameters(), *self.ema.module.parameters()])
        if not bool(torch.stack(norms).isfinite().all()):
            raise self._failure("a weight", self.step)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            self.checkpoints.save(
                self.step,
                network=self.flow.network,
                network_ema=self.ema.module.get_submodule("network"),
                state={
                    "step": self.step,
                    "images": self.images,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else None,
                },
                config_yaml=self.config_yaml,
                keep_last=self.config.keep_last,
            )
        self.accelerator.wait_for_everyone()

    def _save_samples(self, tracker: Tracker) -> None:
        if self.accelerator.is_main_process:
            n, shape = self.config.samples, self.dataset.shape
            x0 = noise(range(n), shape, stream=self.config.seed).to(self.device)
            classes = self.flow.num_classes
            labels = torch.arange(n, device=self.device) % classes if classes else None
            with self.accelerator.autocast():
                x1 = sample(self.ema.module, x0, self.solver, labels)
            picture = (
                image_grid(to_uint8(x1), columns=columns_for(classes))
                if self.is_image
                else scatter(x1, labels=labels)
            )
            folder = self.run_dir / "samples"
            folder.mkdir(exist_ok=True)
            picture.save(folder / f"step{self.step:07d}.png")
            tracker.image(self.step, "samples", np.asarray(picture))
        self.accelerator.wait_for_everyone()

    def _failure(self, what: str, step: int | None) -> TrainingFailed:
        good = self.checkpoints.newest()
        hint = (
            f"the last good checkpoint is {good}; lower train.lr or set train.max_grad_norm and"
            " continue with --resume"
            if good
            else "no checkpoint was written yet; lower train.lr, or look at the data"
        )
        return TrainingFailed(f"{what} became NaN or infinite at step {step}: {hint}")


class _Meter:
    """Sums on the device what a log line needs, so that no step waits for the host."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._loss = torch.zeros((), device=accelerator.device)
        self._bad = torch.full((), torch.inf, device=accelerator.device)
        self.grad_norm: Tensor | None = None
        self._steps: set[int] = set()
        self.restart_clock(0)

    def restart_clock(self, images: int) -> None:
        """Leave out of the rate what was done besides training."""
        self._since, self._images = time.perf_counter(), images

    def add(self, loss: Tensor, step: int) -> None:
        """Count a part of a step's loss."""
        self._loss += loss
        self._bad = torch.where(loss.isfinite(), self._bad, self._bad.clamp(max=step + 1))
        self._steps.add(step)

    def read(self, images: int) -> dict[str, Any]:
        """Mean loss since the last call, over all processes, and the rate; starts anew."""
        loss = self._accelerator.reduce(self._loss, "mean").item() / max(len(self._steps), 1)
        rate = (images - self._images) / (time.perf_counter() - self._since)
        self.restart_clock(images)
        self._loss.zero_()
        self._steps.clear()
        metrics: dict[str, Any] = {"loss": loss, "images_per_second": rate}
        if self.grad_norm is not None:
            metrics["grad_norm"] = float(self.grad_norm)
        return metrics

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite, in any process."""
        first = float(self._accelerator.gather(self._bad).min())
        return None if math.isinf(first) else int(first)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
