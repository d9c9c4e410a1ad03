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

from flowmatch.training.result import TrainingFailed
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


class SecondChance:
    """The one time that a run is sent back, and which of its batches are left out.

    Args:
        run_dir: keeps the steps that went wrong, so that a resumed run leaves them out too.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / SKIPPED
        self._spike: Spike | None = None
        self._from_step: int | None = None

    def known(self) -> set[int]:
        """The steps of the run that went wrong so far, zero-based."""
        return set(json.loads(self._path.read_text())) if self._path.is_file() else set()

    def keep(self, steps: set[int]) -> None:
        """Write them down, whole or not at all."""
        partial = self._path.with_name(f".{SKIPPED}.partial")
        partial.write_text(json.dumps(sorted(steps)))
        os.replace(partial, self._path)

    def take(self, spike: Spike, *, from_step: int, good: Path | None, anew: bool) -> None:
        """Go back for a spike.

        Args:
            spike: what went wrong.
            from_step: where the run was.
            good: its last good checkpoint.
            anew: whether it can start from its beginning instead.
        Raises:
            TrainingFailed: it was sent back before, or there is nothing to go back to.
        """
        if self._spike is not None or (good is None and not anew):
            raise TrainingFailed(self._last_words(spike, good))
        self._spike, self._from_step = spike, from_step

    def tell(self, tracker: Tracker, step: int, images: int) -> None:
        """Say and record, once, that the run went back to this step."""
        if self._from_step is None:
            return
        content = {"spike": str(self._spike), "from_step": self._from_step}
        tracker.record(step, {"images": images, "rolled_back": content})
        tracker.say(
            step,
            f"{self._spike}: went back from step {self._from_step} to {step}, to go on without that"
            " batch; the next time, the run stops",
        )
        self._from_step = None

    def _last_words(self, spike: Spike, good: Path | None) -> str:
        hint = (
            f"The last good checkpoint is {good}; continue with --resume, which leaves what went"
            " wrong out, or lower train.lr or train.max_grad_norm besides"
            if good is not None
            else "No checkpoint was written yet: --resume starts anew and leaves what went"
            " wrong out; or lower train.lr, or look at the data"
        )
        before = ""
        if self._spike is not None:
            before = f"; the run was already sent back once, as {self._spike}"
        return f"{spike}{before}. {hint}"


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
