"""The training loop, in the order in which it runs."""

from __future__ import annotations

import contextlib
import functools
import math
from pathlib import Path

import torch
from accelerate import Accelerator

from flowmatch.data import Dataset
from flowmatch.flow import Flow
from flowmatch.losses import FlowMatching
from flowmatch.solvers import Solver
from flowmatch.training import sharding
from flowmatch.training.checkpoint import Checkpoints
from flowmatch.training.compiling import compile_in_place
from flowmatch.training.cost import starting_facts
from flowmatch.training.distributed import StopRequest
from flowmatch.training.ema import Averages
from flowmatch.training.evaluating import Evaluate, Evaluations, tell
from flowmatch.training.feed import Feed
from flowmatch.training.gradients import Gradients
from flowmatch.training.meter import Meter
from flowmatch.training.objective import Objective
from flowmatch.training.profiling import Clock, Profile
from flowmatch.training.result import Result
from flowmatch.training.settings import TrainConfig
from flowmatch.training.showing import View
from flowmatch.training.snapshots import Snapshots
from flowmatch.training.spikes import SecondChance, Spike, SpikeWatch, Step, WentWrong
from flowmatch.training.state import TrainingState
from flowmatch.training.tracking import Tracker


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
        self.dataset = dataset.to(self.device) if self.device.type == "cuda" else dataset
        self.flow = flow.to(self.device).train()
        mesh = sharding.mesh_of(config.sharding, flow.network, accelerator)
        channels_last = len(dataset.shape) == 3 and config.channels_last_on(self.device)
        if channels_last and mesh is None:  # rows of weights are contiguous
            flow.to(memory_format=torch.channels_last)
        self.feed = Feed(self.dataset, config, device=self.device, channels_last=channels_last)
        self.averages = Averages(flow, config.profiles, mesh)
        self._compiled = compile_in_place(flow.network, config.compile, self.device)
        objective = Objective(flow, loss).to(self.device)
        self.learned = objective.learned
        self.objective = sharding.prepare(objective, mesh, accelerator)
        self.averages.follow(flow)
        self.optimizer = accelerator.prepare(config.optimizer.build(objective, config.peak_lr))
        self._clock = Clock(self.device)
        self.gradients = Gradients(
            self.objective, flow, self.learned, self.feed, self._clock, config, accelerator
        )
        self.checkpoints = Checkpoints(run_dir, sharding.writers_of(mesh))
        self.snapshots = Snapshots(run_dir, config.post_hoc, writes=accelerator.is_main_process)
        self._watch = SpikeWatch(config.spike_factor, check_gradients=accelerator.scaler is None)
        self.state = TrainingState(
            flow, self.averages, self.learned, self.optimizer, self._watch, accelerator
        )
        self.evaluations = Evaluations(evaluate, config)
        self.view = View(
            flow,
            self.averages.own,
            loss,
            self.dataset,
            config,
            solver=solver,
            rows=self.gradients.split.size,
            accelerator=accelerator,
        )
        self._meter = Meter(accelerator, max_grad_norm=config.max_grad_norm)
        self._second_chance = SecondChance(run_dir)
        follow = functools.partial(Profile, self._clock, run_dir, accelerator, flow)
        self._profile = follow(batch=config.batch) if config.profile else None
        self._resumed_from: Path | None = None

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.state.step

    def resume(self, checkpoint: Path) -> None:
        """Take up the state of a checkpoint; call it before the first step."""
        self.state.take_up(checkpoint, self.config.profiles)
        self._resumed_from = checkpoint

    def run(self) -> Result:
        """Train to the end, or until a signal asks to stop.

        A step that goes wrong sends the run back to its last checkpoint, and is left out then.

        Raises:
            TrainingFailed: a second step went wrong.
        """
        self.state.skipped |= self._second_chance.known()
        with StopRequest() as stop:
            while True:
                try:
                    return self._run(stop)
                except WentWrong as error:
                    self._go_back(error.spike)

    def _run(self, stop: StopRequest) -> Result:
        config = self.config
        tracker = Tracker(
            self.run_dir,
            total=config.total_steps,
            start=self.step,
            active=self.accelerator.is_main_process,
        )
        stopped = False
        saved = self.step if self.step else None
        with contextlib.closing(tracker):
            self._start(tracker)
            while self.step < config.total_steps and not stopped:
                self.train_step()
                tracker.advance()
                if self._profile is not None and self._profile.step_done():
                    with self._meter.paused():
                        self._profile.tell(tracker, self.step, self.state.images)
                stopped = stop.agreed() and self.step < config.total_steps
                ends = stopped or self.step == config.total_steps
                if ends or _due(self.step, config.log_every_steps):
                    self._log(tracker)
                # before the checkpoint, which so never is of a step whose snapshots are missing
                if config.snapshot_at(self.step):
                    with self._meter.paused():
                        self._keep_snapshots()
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
        self.checkpoints.finish()
        path = self.checkpoints.folder / f"step{self.step:07d}"
        if self.accelerator.is_main_process and not stopped:
            self.checkpoints.export_last()
        self.accelerator.wait_for_everyone()
        return Result(self.step, path, stopped, self.evaluations.last, self.evaluations.best_step)

    def train_step(self) -> None:
        """One optimizer step on one global batch; nothing in it waits for the device."""
        lr = self.config.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.step not in self.state.skipped:
            parts = self.gradients.compute(self.step, self.state.images)
            for losses in parts:
                self._meter.add(self.step, losses, parts=len(parts))
            with self._clock.phase("optimizer"):
                self._update()
        self.state.advance(self.config.batch)
        with self._clock.phase("ema"):
            self.averages.update(self.step, batch=self.config.batch, images=self.state.images)

    def _update(self) -> None:
        """Move the weights by the gradients of the step."""
        most = self.config.max_grad_norm or math.inf
        norm = sharding.whole(self.accelerator.clip_grad_norm_(self.objective.parameters(), most))
        self._meter.add_gradient(self.step, norm)
        self.optimizer.step()
        if self.accelerator.scaler is not None:
            self.state.overflows += ~norm.isfinite()
        # on a CPU, fresh gradients each step cost a tenth of the step in page faults
        self.optimizer.zero_grad(set_to_none=self.device.type != "cpu")
        if self.learned is not None and self.learned.density is not None:
            self.learned.density.update(functools.partial(self.accelerator.reduce, reduction="sum"))

    def _log(self, tracker: Tracker) -> None:
        steps = self._require_good()
        if not steps:  # all since the last line were left out
            return
        metrics = self._meter.read(self.state.images, steps, waited=self.feed.clock.read())
        metrics = {"images": self.state.images, "lr": self.config.lr_at(self.step - 1), **metrics}
        if skipped := self.state.left_out:
            metrics["skipped_steps"] = skipped
        tracker.log(self.step, metrics)

    def _start(self, tracker: Tracker) -> None:
        """Say on what the run goes on, take up its clock and evaluations, make up for a missed one.

        A kill between a checkpoint and its evaluation leaves one out; so does a wish to stop.
        """
        if self.step < self.config.total_steps:
            with sharding.gathered(self.averages.own) as own:
                if self.accelerator.is_main_process:
                    self._tell_facts(own, tracker)
            self.accelerator.wait_for_everyone()  # the measurement has the machine for itself
        self.evaluations.take_up(tracker, self.checkpoints)
        if self.evaluations.due(self.step):
            self._evaluate(tracker)
        self._second_chance.tell(tracker, self.step, self.state.images)
        before = tracker.last("seconds")
        self._meter.start(self.state.images, before["seconds"] if before else 0.0)
        self.feed.clock.read()  # of a run that was sent back

    def _tell_facts(self, own: Flow, tracker: Tracker) -> None:
        facts = starting_facts(own, self.dataset, self.accelerator)
        started = {**facts, "compiled": self._compiled}
        tracker.record(self.step, {"images": self.state.images, "started": started})
        if self._profile is not None:
            self._profile.forward_flops = facts["forward_flops_per_image"]

    def _keep_snapshots(self) -> None:
        self._require_good(weights=True)
        if self.state.writes:
            self.snapshots.save(self.averages.networks, step=self.step, images=self.state.images)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        self._require_good(weights=True)
        if self.state.writes:
            contents = self.state.contents(self.config_yaml)
            self.checkpoints.begin_save(self.step, contents, keep_last=self.config.keep_last)
        self.state.is_saved()
        self.accelerator.wait_for_everyone()

    def _require_good(self, *, weights: bool = False) -> list[Step]:
        """The steps since the last log line, none of which went wrong.

        Raises:
            WentWrong: one did; or, with `weights`, a weight is not finite.
        """
        steps = self._meter.steps()
        spike = self._watch.look(steps)
        if spike is None and weights:
            tensors = [*self.flow.parameters(), *self.averages.own.parameters()]
            if not sharding.all_finite(tensors, self.accelerator):
                spike = Spike(self.step - 1, "a weight became NaN or infinite")
        if spike is not None:
            raise WentWrong(spike)
        return steps

    def _show(self, tracker: Tracker) -> None:
        """Keep a grid of samples, and the numbers that explain the loss."""
        self._require_good(weights=True)
        seen = self.view.look()
        if seen is not None:
            seen.keep(self.run_dir, tracker, step=self.step, images=self.state.images)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, tracker: Tracker) -> None:
        self._require_good(weights=True)
        with sharding.gathered(self.averages.own) as own:
            found, is_best = self.evaluations.run(own, self.step)
        if is_best and self.state.writes:
            record = {"images": self.state.images, "evaluation": found.record()}
            contents = self.state.contents(self.config_yaml)
            self.checkpoints.save_best({"step": self.step, **record}, contents)
        # the record comes last: a kill before it repeats the evaluation
        tell(found, tracker, step=self.step, images=self.state.images, is_best=is_best)
        self.accelerator.wait_for_everyone()

    def _go_back(self, spike: Spike) -> None:
        """Return to the last checkpoint, to go on from there without the batch that went wrong.

        Raises:
            TrainingFailed: the run has been sent back before.
        """
        self.checkpoints.finish()
        self.accelerator.wait_for_everyone()  # all see the same newest
        good = self.checkpoints.newest() or self._resumed_from
        self.state.skipped.add(spike.step)
        if self.accelerator.is_main_process:
            self._second_chance.keep(self.state.skipped)
        anew = self.state.can_start_anew
        self._second_chance.take(spike, from_step=self.step, good=good, anew=anew)
        if good is not None:
            self.state.take_up(good, self.config.profiles)
        else:
            self.state.start_anew()
        self.accelerator.wait_for_everyone()  # nobody sets aside what others still read
        if self.accelerator.is_main_process:
            self.set_aside()

    def set_aside(self) -> None:
        """Take what was kept of steps after this one out of the way: they are made again."""
        for kept in (self.checkpoints, self.snapshots):
            kept.clear_unfinished()
            kept.set_aside_after(self.step)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
