"""The training loop, in the order in which it runs."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from flowmatch.data import Batch, Dataset, ShuffledOrder, stream
from flowmatch.flow import Cond, Flow
from flowmatch.losses import Draws, FlowMatching
from flowmatch.networks import dropouts_of
from flowmatch.solvers import Solver
from flowmatch.training.checkpoint import Checkpoints, fit_weights, read_state, read_weights
from flowmatch.training.cost import starting_facts
from flowmatch.training.distributed import StopRequest
from flowmatch.training.draws import Split, draw, requests, seed_the_rest
from flowmatch.training.ema import EMA
from flowmatch.training.evaluating import Evaluate, Evaluated, Evaluations, tell
from flowmatch.training.meter import Meter
from flowmatch.training.objective import Objective
from flowmatch.training.settings import TrainConfig
from flowmatch.training.showing import View
from flowmatch.training.tracking import Tracker


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says where it stood and how to go on."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Args:
        step: its last step.
        checkpoint: its last checkpoint.
        stopped: whether it was asked to stop before its end.
        evaluation: the last evaluation of the training, or None.
        best_step: the step of the best checkpoint, or None.
    """

    step: int
    checkpoint: Path
    stopped: bool
    evaluation: Evaluated | None = None
    best_step: int | None = None


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
        evaluate: what `config.evaluate_every_steps` or `_images` asks for at its times.
    Raises:
        ValueError: evaluations are asked for and not given, or given and not asked for.
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
        evaluate: Evaluate | None = None,
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.config_yaml, self.accelerator = config_yaml, accelerator
        self.device = accelerator.device
        self.split = Split(
            config.batch, config.accumulate, accelerator.num_processes, accelerator.process_index
        )
        self.dataset = dataset.to(self.device) if self.device.type == "cuda" else dataset
        self.flow = flow.to(self.device).train()
        auto = "channels_last" if self.device.type == "cuda" else "contiguous"
        chosen = auto if config.memory_format == "auto" else config.memory_format
        self.channels_last = len(dataset.shape) == 3 and chosen == "channels_last"
        if self.channels_last:
            flow.to(memory_format=torch.channels_last)
        self.ema = EMA(flow)
        self.dropouts = dropouts_of(flow)
        optimizer = config.optimizer.build(flow.parameters(), config.lr)
        self.objective, self.optimizer = accelerator.prepare(Objective(flow, loss), optimizer)
        self.checkpoints = Checkpoints(run_dir)
        self.step = 0
        self.images = 0
        self.evaluations = Evaluations(evaluate, config)
        self.view = View(
            flow,
            self.ema.module,
            loss,
            self.dataset,
            config,
            solver=solver,
            rows=self.split.size,
            accelerator=accelerator,
        )
        self._meter = Meter(accelerator)

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
        stopped = False
        saved = self.step if self.step else None
        with contextlib.closing(tracker), StopRequest() as stop:
            self._start(tracker)
            while self.step < config.total_steps and not stopped:
                self.train_step()
                tracker.advance()
                stopped = stop.agreed()
                ends = stopped or self.step == config.total_steps
                if ends or _due(self.step, config.log_every_steps):
                    self._log(tracker)
                if ends or _due(self.step, config.save_every):
                    with self._meter.paused():
                        self._save()
                    saved = self.step
                if _due(self.step, config.sample_every):
                    with self._meter.paused():
                        self._show(tracker)
                # whoever asks to stop should not have to wait: a resumed run makes up for it
                if self.evaluations.due(self.step) and not stopped:
                    with self._meter.paused():
                        self._evaluate(tracker)
        if saved != self.step:
            self._save()
        path = self.checkpoints.folder / f"step{self.step:07d}"
        stopped = stopped and self.step < config.total_steps
        return Result(self.step, path, stopped, self.evaluations.last, self.evaluations.best_step)

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
                mean, losses, t = self.objective(x1, self._conditions(batch.cond), draws)
                loss = mean / len(parts)
                self.accelerator.backward(loss)
            self._meter.add(loss.detach(), losses, t, self.step)
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

    def _start(self, tracker: Tracker) -> None:
        """Say on what the run goes on, take up its clock and evaluations, make up for a missed one.

        A kill between a checkpoint and its evaluation leaves one out; so does a wish to stop.
        """
        if self.step < self.config.total_steps:
            if self.accelerator.is_main_process:
                facts = starting_facts(self.ema.module, self.dataset.shape, self.accelerator)
                tracker.record(self.step, {"images": self.images, "started": facts})
            self.accelerator.wait_for_everyone()  # the measurement has the machine for itself
        self.evaluations.take_up(tracker, self.checkpoints)
        if self.evaluations.due(self.step):
            self._evaluate(tracker)
        before = tracker.last("seconds")
        self._meter.start(self.images, before["seconds"] if before else 0.0)

    def _save(self) -> None:
        self._require_finite()
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.step, **self._contents(), keep_last=self.config.keep_last)
        self.accelerator.wait_for_everyone()

    def _require_finite(self) -> None:
        """Nothing is kept of a run whose loss or weights are not finite."""
        bad = self._meter.first_bad_step()
        if bad is not None:
            raise self._failure("the loss", bad)
        norms = torch._foreach_norm([*self.flow.parameters(), *self.ema.module.parameters()])
        if not bool(torch.stack(norms).isfinite().all()):
            raise self._failure("a weight", self.step)

    def _contents(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        scaler = self.accelerator.scaler
        return {
            "network": self.flow.network,
            "network_ema": self.ema.module.get_submodule("network"),
            "state": {
                "step": self.step,
                "images": self.images,
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            },
            "config_yaml": self.config_yaml,
        }

    def _show(self, tracker: Tracker) -> None:
        """Keep a grid of samples, and the numbers that explain the loss."""
        if self.accelerator.is_main_process:
            picture, numbers = self.view.look()
            folder = self.run_dir / "samples"
            folder.mkdir(exist_ok=True)
            picture.save(folder / f"step{self.step:07d}.png")
            tracker.image(self.step, "samples", np.asarray(picture))
            tracker.record(self.step, {"images": self.images, **numbers}, scalars=numbers)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, tracker: Tracker) -> None:
        found, is_best = self.evaluations.run(self.ema.module, self.step)
        if is_best:
            self._require_finite()
            if self.accelerator.is_main_process:
                record = {"images": self.images, "evaluation": found.record()}
                self.checkpoints.save_best({"step": self.step, **record}, **self._contents())
        # the record comes last: a kill before it repeats the evaluation
        tell(found, tracker, step=self.step, images=self.images, is_best=is_best)
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


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
