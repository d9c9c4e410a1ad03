"""How a training run ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowmatch.training.evaluating import Evaluated


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
