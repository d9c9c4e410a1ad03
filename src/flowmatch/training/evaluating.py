"""Evaluation during training: what it gives, what it must not touch, the last and the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list

from flowmatch.flow import Flow
from flowmatch.training.checkpoint import Checkpoints, read_evaluation
from flowmatch.training.settings import TrainConfig
from flowmatch.training.tracking import Tracker


class Evaluated(NamedTuple):
    """What an evaluation found."""

    metrics: dict[str, float]
    """Numbers by name; one that could not be had is NaN."""
    primary: str
    """Name of the metric that decides which checkpoint is best; lower is better."""
    num_samples: int
    """Samples that the metrics were taken over."""
    protocol: str
    """One line on how: features, reference set, solver, NFE, weights."""

    @property
    def value(self) -> float:
        """The metric that decides."""
        return self.metrics[self.primary]

    def record(self) -> dict[str, Any]:
        """What metrics.jsonl says about it; its numbers are of fewer samples than a final one's.

        A number that is not finite is None, as JSON has none.
        """
        finite = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        return {
            "num_samples": self.num_samples,
            "reduced": True,
            "primary": self.primary,
            "metrics": finite,
            "protocol": self.protocol,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Evaluated:
        """What a record says, in which a number that is not finite is null."""
        metrics = {k: math.nan if v is None else float(v) for k, v in record["metrics"].items()}
        return cls(metrics, record["primary"], record["num_samples"], record["protocol"])


Evaluate = Callable[[Flow], Evaluated]
"""Called on all processes with the averaged flow; returns the same on all of them."""


class Evaluations:
    """The evaluations of a run: when, which was the last, and which the best.

    Args:
        evaluate: takes the measurements; None where the config asks for none.
        config: says when.
    Raises:
        ValueError: evaluations are asked for and not given, or given and not asked for.
    """

    def __init__(self, evaluate: Evaluate | None, config: TrainConfig) -> None:
        if (evaluate is None) != (config.evaluate_every is None):
            raise ValueError(
                "train.evaluate_every_steps (or _images) and the trainer's evaluate belong"
                " together; give both or neither"
            )
        self._evaluate, self._config = evaluate, config
        self.last: Evaluated | None = None
        self.best_step: int | None = None
        self._last_step: int | None = None
        self._best: Evaluated | None = None

    def take_up(self, tracker: Tracker, checkpoints: Checkpoints) -> None:
        """Go on from the records of a run and its best checkpoint; called on all processes."""
        if self._evaluate is None:
            return
        self.last = self.best_step = self._last_step = self._best = None
        best = checkpoints.best() if tracker.active else None
        known = [tracker.last("evaluation"), read_evaluation(best) if best else None]
        broadcast_object_list(known)
        last, record = known
        if last is not None:
            self._last_step, self.last = last["step"], Evaluated.of(last["evaluation"])
        if record is not None:
            self.best_step, self._best = record["step"], Evaluated.of(record["evaluation"])

    def due(self, step: int) -> bool:
        """Whether this step has an evaluation that was not taken yet."""
        every = self._config.evaluate_every
        if every is None or step in (0, self._last_step):
            return False
        return step % every == 0 or step == self._config.total_steps

    def run(self, flow: Flow, step: int) -> tuple[Evaluated, bool]:
        """Evaluate a flow; what was found, and whether it is the best so far.

        It is compared with evaluations by the same metric on as many samples. The first of a kind
        is the best, unless its metric is not finite.

        Args:
            flow: in evaluation mode and without gradients, as it is again afterwards.
            step: the training step.
        Raises:
            ValueError: the metric that decides is not among the metrics.
        """
        assert self._evaluate is not None  # else none is due
        gpus = [p.device for p in flow.parameters() if p.device.type == "cuda"][:1]
        with torch.random.fork_rng(gpus), torch.set_grad_enabled(torch.is_grad_enabled()):
            found = self._evaluate(flow)
        flow.eval().requires_grad_(False)
        if found.primary not in found.metrics:
            raise ValueError(
                f"the evaluation is to be judged by {found.primary!r}, but gave only"
                f" {', '.join(found.metrics) or 'no metrics'}; name one of them"
            )
        self._last_step, self.last = step, found
        is_best = math.isfinite(found.value) and self._beats_best(found)
        if is_best:
            self.best_step, self._best = step, found
        return found, is_best

    def _beats_best(self, found: Evaluated) -> bool:
        best = self._best
        if best is None or (best.primary, best.num_samples) != (found.primary, found.num_samples):
            return True
        return found.value < best.value


def tell(found: Evaluated, tracker: Tracker, *, step: int, images: int, is_best: bool) -> None:
    """Write the record of an evaluation, its scalars, and a line."""
    group = f"evaluation-{found.num_samples}-samples"
    scalars = {f"{group}/{name}": value for name, value in found.metrics.items()}
    tracker.record(step, {"images": images, "evaluation": found.record()}, scalars=scalars)
    tracker.say(
        step,
        f"evaluation on {found.num_samples:,} samples (reduced): {found.primary}"
        f" {found.value:,.4g}{', the best so far' if is_best else ''}",
    )
