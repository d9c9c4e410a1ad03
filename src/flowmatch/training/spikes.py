"""Steps that went wrong: losses or gradients that are not finite, and losses that jump."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from flowmatch.training.tracking import Tracker

SKIPPED = "skipped_steps.json"
"""File of a run directory with the steps that went wrong, zero-based."""

_REMEMBERED = 200
_FEWEST = 50
_ABOVE_NOISE = 10


class Step(NamedTuple):
    """What is known of a step once it is done."""

    number: int
    """Zero-based."""
    loss: float
    """The mean loss of its global batch."""
    grad_norm: float
    """The norm of its gradient before clipping."""


@dataclass(frozen=True)
class Spike:
    """A step that went wrong, and how."""

    step: int
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} at step {self.step + 1}"


class WentWrong(Exception):
    """A step went wrong; the run has to go back or to stop."""

    def __init__(self, spike: Spike) -> None:
        super().__init__(str(spike))
        self.spike = spike


@dataclass
class Rollback:
    """That a run was sent back.

    Args:
        spike: why.
        from_step: the step it had come to.
        told: whether it was said.
    """

    spike: Spike
    from_step: int
    told: bool = False

    def tell(self, tracker: Tracker, step: int, images: int) -> None:
        """Say and record it, at the step that the run went back to."""
        self.told = True
        content = {"spike": str(self.spike), "from_step": self.from_step}
        tracker.record(step, {"images": images, "rolled_back": content})
        tracker.say(
            step,
            f"{self.spike}: went back from step {self.from_step} to {step}, to go on without that"
            " batch; the next time, the run stops",
        )


def read_skipped(run_dir: Path) -> set[int]:
    """The steps of a run that went wrong so far, zero-based."""
    path = run_dir / SKIPPED
    return set(json.loads(path.read_text())) if path.is_file() else set()


def write_skipped(run_dir: Path, steps: set[int]) -> None:
    """Keep them, so that a resumed run leaves them out too; whole or not at all."""
    partial = run_dir / f".{SKIPPED}.partial"
    partial.write_text(json.dumps(sorted(steps)))
    os.replace(partial, run_dir / SKIPPED)


def final_spike(spike: Spike, first: Spike | None, good: Path | None) -> str:
    """Why the run stops, and how to go on."""
    hint = (
        f"the last good checkpoint is {good}; continue with --resume, which leaves both batches"
        " out, or lower train.lr or train.max_grad_norm besides"
        if good is not None
        else "no checkpoint was written yet; lower train.lr, or look at the data"
    )
    before = "" if first is None else f"; the run was already sent back once, as {first}"
    return f"{spike}{before}. {hint[0].upper()}{hint[1:]}"


class SpikeWatch:
    """Compares each step's loss with the 200 before it.

    A spike is above `factor` times their median, and ten times further above the largest of them
    than that is above the median: small batches have losses that jump by themselves.

    Args:
        factor: see above; None looks for numbers that are not finite alone. No loss is a spike
            before 50 others are known.
        check_gradients: whether a gradient that is not finite is a spike. A loss scaler skips such
            steps by itself.
    """

    def __init__(self, factor: float | None, *, check_gradients: bool) -> None:
        self._factor, self._check_gradients = factor, check_gradients
        self._losses: deque[float] = deque(maxlen=_REMEMBERED)
        self._seen = -1

    def look(self, steps: Sequence[Step]) -> Spike | None:
        """The first spike among steps, or None; those looked at before are passed over."""
        for step in steps:
            if step.number <= self._seen:
                continue
            self._seen = step.number
            reason = self._reason(step)
            if reason is not None:
                return Spike(step.number, reason)
            self._losses.append(step.loss)
        return None

    @property
    def losses(self) -> list[float]:
        """The losses that others are compared with, oldest first."""
        return [*self._losses]

    def restore(self, losses: Iterable[float]) -> None:
        """Compare with these losses, after going to another step."""
        self._losses = deque(losses, maxlen=_REMEMBERED)
        self._seen = -1

    def _reason(self, step: Step) -> str | None:
        if not math.isfinite(step.loss):
            return "the loss became NaN or infinite"
        if self._check_gradients and not math.isfinite(step.grad_norm):
            return "the gradient became NaN or infinite"
        if self._factor is None or len(self._losses) < _FEWEST:
            return None
        usual, largest = median(self._losses), max(self._losses)
        beyond_noise = largest + _ABOVE_NOISE * (largest - usual)
        if step.loss > max(self._factor * usual, beyond_noise):
            return f"the loss jumped to {step.loss:.4g}, from about {usual:.4g}"
        return None
