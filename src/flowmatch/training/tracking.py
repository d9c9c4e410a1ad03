"""Telling how a run goes: metrics.jsonl, TensorBoard, and one progress bar or plain lines."""

from __future__ import annotations

import json
import os
import sys
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
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        self._forget_after(start)
        self._file = self._path.open("a")
        self._board = SummaryWriter(run_dir / "tensorboard", purge_step=start + 1)
        self._bar = None
        self._total = total
        if sys.stderr.isatty():
            self._bar = Bar(total, start)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Record numbers of a step everywhere."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        line = " ".join(f"{k} {v:,.4g}" for k, v in metrics.items() if k in _SHOWN)
        if self._bar is not None:
            self._bar.describe(line)
        else:
            print(f"step {step:,}/{self._total:,}  {line}", flush=True)

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


_SHOWN = ("loss", "lr", "grad_norm", "images_per_second")


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

    def close(self) -> None:
        self._progress.stop()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line torn by a kill is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
