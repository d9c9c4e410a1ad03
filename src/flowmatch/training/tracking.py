"""Telling how a run goes: metrics.jsonl, TensorBoard, and one progress bar or plain lines."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flowmatch.training.bins import centres
from flowmatch.training.waiting import WaitWatch


class Tracker:
    """Writes metrics and shows progress; on all but the main process it does nothing.

    Args:
        run_dir: where `metrics.jsonl` and `tensorboard/` go.
        total: steps of the run, for the progress bar.
        start: the step that the run (re)starts from; metrics of later steps are dropped, since
            those steps are about to be repeated.
        active: whether this is the main process.
    """

    def __init__(self, run_dir: Path, *, total: int, start: int, active: bool) -> None:
        self.active = active
        self._last: dict[str, dict[str, Any]] = {}
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        self._forget_after(start)
        self._file = self._path.open("a")
        self._board = SummaryWriter(run_dir / "tensorboard", purge_step=start + 1)
        self._bar = None
        self._total = total
        self._waits = WaitWatch()
        if sys.stderr.isatty():
            self._bar = Bar(total, start)

    def last(self, name: str) -> dict[str, Any] | None:
        """The newest record with this key of the steps before the start; None: there is none."""
        return self._last.get(name)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record numbers of a step everywhere, and show the most important ones."""
        if not self.active:
            return
        self.record(step, metrics, scalars=metrics)
        line = " ".join(f"{k} {v:,.4g}" for k, v in metrics.items() if k in _SHOWN)
        if self._bar is not None:
            self._bar.describe(line)
        else:
            self.say(step, line)
        if "data_wait" in metrics:
            advice = self._waits.look(metrics["data_wait"], metrics["seconds"])
            if advice is not None:
                self.say(step, advice)

    def record(
        self, step: int, content: Mapping[str, Any], *, scalars: Mapping[str, Any] | None = None
    ) -> None:
        """Write a record of a step to metrics.jsonl, and numbers to TensorBoard.

        Args:
            step: the step.
            content: plain data; numbers that are not finite become null, as JSON has none.
            scalars: numbers by name; a list holds one for each part of [0, 1] and becomes
                `NAME/0.05`, `NAME/0.15`, ...; None is left out.
        """
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **_finite(content)}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in _flat(scalars or {}).items():
            self._board.add_scalar(name, value, step)

    def say(self, step: int, text: str) -> None:
        """A line about a step: above the bar, or among the plain lines."""
        if not self.active:
            return
        line = f"step {step:,}/{self._total:,}  {text}"
        if self._bar is not None:
            self._bar.say(line)
        else:
            print(line, flush=True)

    def advance(self) -> None:
        """One step is done."""
        if self.active and self._bar is not None:
            self._bar.advance()

    def image(self, step: int, name: str, pixels: Any) -> None:
        """Show a uint8 [H, W, 3] picture in TensorBoard."""
        if self.active:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close; the bar leaves the terminal."""
        if self.active:
            if self._bar is not None:
                self._bar.close()
            self._file.close()
            self._board.close()

    def _forget_after(self, start: int) -> None:
        if not self._path.exists():
            return
        kept = [r for r in read_metrics(self._path) if r["step"] <= start]
        fresh = self._path.with_suffix(".partial")
        fresh.write_text("".join(json.dumps(r) + "\n" for r in kept))
        os.replace(fresh, self._path)
        self._last = {name: record for record in kept for name in record}


_SHOWN = ("loss", "lr", "grad_norm", "images_per_second", "data_wait")


class Bar:
    """A progress bar on the terminal's stderr: steps, rate, ETA and the latest numbers."""

    def __init__(self, total: int, start: int = 0, label: str = "training") -> None:
        self._progress = Progress(
            TextColumn(label),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            refresh_per_second=4,
        )
        self._progress.console.file = sys.stderr
        self._task = self._progress.add_task("", total=total, completed=start)
        self._progress.start()

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def _flat(scalars: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name, where those of a list are named by the middle of their part of [0, 1]."""
    found: dict[str, Any] = {}
    for name, value in scalars.items():
        if isinstance(value, list):
            parts = zip(centres(len(value)), value, strict=True)
            found |= {f"{name}/{centre:.2f}": v for centre, v in parts}
        else:
            found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def _finite(value: Any) -> Any:
    """Plain data with None in place of each number that is not finite."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line torn by a kill is left out.

    Each has "step" and "images". Besides, it holds the numbers of a log line ("loss", ...), or of a
    look at the samples ("grad_norm_t", "curvature", "clip_share"), or "evaluation", or "started".
    """
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
