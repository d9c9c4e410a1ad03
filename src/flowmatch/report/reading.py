"""What a run directory holds, read for the page; what cannot be read is named, not fatal."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from flowmatch.config import Config, load_config
from flowmatch.evaluation.protocol import grid_in_words
from flowmatch.training.checkpoint import Checkpoints, read_state
from flowmatch.training.tracking import read_metrics

Record = dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """By class: samples asked for, the share recognised as it, samples recognised as it."""

    requested: list[int | None] = field(default_factory=list)
    recognised_share: list[float | None] = field(default_factory=list)
    predicted_counts: list[int | None] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One solver setting of an evaluation, and what it scored."""

    metrics: dict[str, float | None]
    solver: str | None = None
    steps: int | None = None
    time_grid: str | None = None
    safe_end: bool | None = None
    options: dict[str, Any] | None = None
    nfe: float | None = None
    spread: dict[str, float | None] = field(default_factory=dict)
    seconds: float | None = None
    nonfinite: int = 0
    protocol: str = ""
    grid: str | None = None
    classes: Classes | None = None

    @property
    def method(self) -> str:
        """`heun`, `heun (bare end)`, `dopri5 (rtol 1e-05)`; images of a folder are `stored`."""
        grid = grid_in_words(self.time_grid)
        told = [grid] if grid else []
        told += ["bare end"] if self.safe_end is False else []
        options = self.options or {}
        told += [f"{name} {options[name]}" for name in ("rtol", "atol") if name in options]
        return (self.solver or "stored") + (f" ({', '.join(told)})" if told else "")

    @property
    def name(self) -> str:
        """`heun, 50 steps`"""
        return f"{self.method}, {self.steps:,} steps" if self.steps else self.method


@dataclass(frozen=True)
class Anchor:
    """What something known (e.g. held-out data) scores against the same reference."""

    metrics: dict[str, float | None]
    count: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """The content of one file in `evaluation/`.

    `floor` is what `count` samples of a perfect model score; `transport` describes the paths.
    """

    rows: list[Row]
    protocol: dict[str, Any] = field(default_factory=dict)
    anchors: dict[str, Anchor] = field(default_factory=dict)
    floor: dict[str, float | None] = field(default_factory=dict)
    transport: dict[str, float | None] = field(default_factory=dict)
    classes: Classes | None = None


_EVALUATION: TypeAdapter[Evaluation] = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class Run:
    """A run directory as the page needs it.

    Attributes:
        folder: the run directory.
        config: its resolved config.
        shape: of one sample; None where that needs data that is not here.
        parameters: of the network; None where `shape` is.
        checkpoint: step and images of the newest checkpoint; None before the first.
        records: the lines of metrics.jsonl, oldest first.
        samples: sample grids by step.
        evaluations: by path, the oldest file first.
        unreadable: evaluation files that say no evaluation: path and why.
    """

    folder: Path
    config: Config
    shape: tuple[int, ...] | None
    parameters: int | None
    checkpoint: tuple[int, int] | None
    records: list[Record]
    samples: dict[int, Path]
    evaluations: dict[Path, Evaluation]
    unreadable: dict[Path, str]

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.resolve().name

    @property
    def argument(self) -> str:
        """The run directory as a word of a command."""
        return shlex.quote(str(self.folder))

    def train_command(self, change: str = "") -> str:
        """What trains with a change: this run where it is unfinished, else a new one like it."""
        done = self.checkpoint is not None and self.checkpoint[0] >= self.config.train.total_steps
        config, again = self.folder / "config.yaml", f"{self.folder}-again"
        words = ["-c", str(config), "-e", again] if done else ["-e", str(self.folder), "--resume"]
        return shlex.join(["flowmatch", "train", *words, *([change] if change else [])])

    def with_key(self, key: str) -> list[Record]:
        """The records that hold a key."""
        return [r for r in self.records if r.get(key) is not None]


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        ValueError: it is none, or its config is not readable.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run directory: it has no config.yaml")
    if (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} is a checkpoint; report on its run, {folder.parents[1]}")
    config = load_config(folder / "config.yaml")
    shape, parameters = _size(config)
    evaluations, unreadable = _read_evaluations(folder / "evaluation")
    metrics = folder / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.is_file() else []
    return Run(
        folder=folder,
        config=config,
        shape=shape,
        parameters=parameters,
        checkpoint=_read_progress(folder),
        records=[r for r in records if isinstance(r, dict)],
        samples=_find_samples(folder / "samples"),
        evaluations=evaluations,
        unreadable=unreadable,
    )


def number(record: Record, *keys: str) -> float | None:
    """The finite number under a key, or under nested keys; None where there is none."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return finite(value)


def numbers(record: Record, key: str) -> list[float | None]:
    """The list under a key, with None for what is not a finite number."""
    value = record.get(key)
    return [finite(v) for v in value] if isinstance(value, list) else []


def finite(value: object) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def spread_out(items: Sequence[Any], count: int = 3) -> list[Any]:
    """The first, the last, and evenly spaced ones between, at most `count` in all."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _size(config: Config) -> tuple[tuple[int, ...] | None, int | None]:
    try:
        shape = config.data.shape
    except (ValueError, OSError):  # a finished run may be looked at where its data are not
        return None, None
    with torch.device("meta"):  # shapes without memory
        network = config.network.build(shape)
    return shape, sum(p.numel() for p in network.parameters())


def _read_progress(folder: Path) -> tuple[int, int] | None:
    newest = Checkpoints(folder).newest()
    if newest is None:
        return None
    state = read_state(newest)
    return int(state["step"]), int(state["images"])


def _find_samples(folder: Path) -> dict[int, Path]:
    found = {int(p.stem[4:]): p for p in folder.glob("step*.png") if p.stem[4:].isdigit()}
    return dict(sorted(found.items()))


def _read_evaluations(folder: Path) -> tuple[dict[Path, Evaluation], dict[Path, str]]:
    good: dict[Path, Evaluation] = {}
    bad: dict[Path, str] = {}
    for path in sorted(folder.glob("*.json"), key=lambda p: (p.stat().st_mtime, p.name)):
        try:
            good[path] = _EVALUATION.validate_python(json.loads(path.read_text()))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "its content"
            bad[path] = f"{where}: {first['msg'].lower()}"
        except (ValueError, OSError) as error:  # no JSON, no text, no right to read it
            bad[path] = str(error)
    return good, bad
