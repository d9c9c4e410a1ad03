"""Checkpoints: complete or absent, never half written.

    ckpt/step0010000/{model.safetensors, model_ema.safetensors, state.pt, config.yaml}
                      and a model_ema-NAME.safetensors of every further average
    ckpt/best/        the same and evaluation.json, in runs that evaluate while they train

Of a sharded run each of the files of tensors, and the moments of its optimizer, lie in shards
(`shards`), written by all processes side by side.

A checkpoint is written under a temporary name, flushed to the disk and renamed, so a kill at any
moment leaves the older ones whole. Nothing from a checkpoint is ever executed.
"""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flowmatch.training.background import Background, Writers
from flowmatch.training.contents import (
    CONFIG,
    MODEL,
    MOMENTS,
    OWN_AVERAGE,
    STATE,
    Contents,
    average_files,
)
from flowmatch.training.ema import Exponential, Profile
from flowmatch.training.files import flush_folder, write_durably
from flowmatch.training.shards import Stored, is_stored, whole_file
from flowmatch.training.weights import first_line

_EVALUATION = "evaluation.json"


class Checkpoints:
    """The checkpoints of a run directory, oldest first.

    Args:
        run_dir: the run directory; its `ckpt/` is made by the first save.
        writers: the processes that save together; None: this one by itself.
    """

    def __init__(self, run_dir: Path, writers: Writers | None = None) -> None:
        self.folder = run_dir / "ckpt"
        self._writers = writers or Writers()
        self._background = Background()

    def all(self) -> list[Path]:
        """Every finished checkpoint folder, by step."""
        found = [p for p in self.folder.glob("step*") if p.name[4:].isdigit() and p.is_dir()]
        return sorted(found, key=lambda p: int(p.name[4:]))

    def newest(self) -> Path | None:
        """The newest checkpoint that can be read; broken ones are passed over."""
        self.finish()
        return next((p for p in reversed(self.all()) if not problems(p)), None)

    def best(self) -> Path | None:
        """The checkpoint with the best evaluation, or None: no evaluation yet, or not readable."""
        # a kill between the two renames of a replacement leaves the old best under its second name
        found = (p for p in (self._best, self._replaced) if p.is_dir() and not problems(p))
        return next(found, None)

    def begin_save(self, step: int, contents: Contents, *, keep_last: int) -> None:
        """`save` in the background; the tensors must not change meanwhile.

        Whatever else is asked of the checkpoints waits for it. An error is raised then.
        """
        self._background.start(functools.partial(self.save, step, contents, keep_last=keep_last))

    def finish(self) -> None:
        """Wait until the last checkpoint that was begun is on the disk."""
        self._background.finish()

    def save(self, step: int, contents: Contents, *, keep_last: int) -> Path:
        """Write the checkpoint of a step and delete all but the newest `keep_last`.

        Args:
            step: of the training.
            contents: what it holds; of several writers, each gives its own rows.
            keep_last: checkpoints that are there afterwards.
        """
        final = self.folder / f"step{step:07d}"
        partial = self._write_partial(final.name, contents)

        def finish() -> None:
            flush_folder(partial)
            if final.exists():  # an earlier attempt at the same step, left by a resume before it
                shutil.rmtree(final)
            partial.rename(final)
            flush_folder(self.folder)
            older = [p for p in self.all() if p != final and int(p.name[4:]) < step]
            for path in older[: max(len(older) - (keep_last - 1), 0)]:
                self._delete(path)

        self._writers.first(finish)
        return final

    def save_best(self, evaluation: Mapping[str, Any], contents: Contents) -> Path:
        """Write the best checkpoint, with the record of its evaluation, in place of the last best.

        The last best is there under one name or another until the new one is.

        Args:
            evaluation: the record.
            contents: as of `save`.
        """
        self.finish()
        partial = self._write_partial("best", contents)

        def finish() -> None:
            text = json.dumps(evaluation, indent=2)
            write_durably(partial / _EVALUATION, lambda p: p.write_text(text))
            flush_folder(partial)
            if self._best.exists():
                self._best.rename(self._replaced)
            partial.rename(self._best)
            flush_folder(self.folder)
            if self._replaced.exists():
                shutil.rmtree(self._replaced)

        self._writers.first(finish)
        return self._best

    def export_last(self) -> None:
        """Put together what is in shards of the newest and of the best checkpoint."""
        for found in (self.newest(), self.best()):
            if found is not None:
                export(found)

    def set_aside_after(self, step: int) -> None:
        """Take the checkpoints after a step out of the way: training goes on from there.

        They are renamed, not deleted, and never picked as the newest or the best again.
        """
        self.finish()
        for path in self.all():
            if int(path.name[4:]) > step:
                _rename_over(path, path.with_name(f"superseded-{path.name}"))
        best = self.best()
        if best is not None and (saved := read_state(best)["step"]) > step:
            _rename_over(best, self.folder / f"superseded-best-step{saved:07d}")

    def clear_unfinished(self) -> None:
        """Remove what a killed save left behind, and bring back a best that was being replaced."""
        for path in self.folder.glob(".partial-*"):
            shutil.rmtree(path)
        if self._replaced.exists():
            if self._best.exists():
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(self._best)

    @property
    def _best(self) -> Path:
        return self.folder / "best"

    @property
    def _replaced(self) -> Path:
        return self.folder / ".replaced-best"

    def _delete(self, path: Path) -> None:
        """Delete a checkpoint under another name, so that nobody begins to read half of it."""
        doomed = self.folder / f".partial-deleted-{path.name}"
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _write_partial(self, name: str, contents: Contents) -> Path:
        """The files of a checkpoint under a temporary name, each of them on the disk."""
        partial = self.folder / f".partial-{name}"

        def begin() -> None:
            self.clear_unfinished()
            partial.mkdir(parents=True)

        self._writers.first(begin)
        contents.write(partial, self._writers)
        return partial


def problems(checkpoint: Path) -> str | None:
    """Why a checkpoint folder cannot be read, or None if it can."""
    missing = [n for n in (STATE, CONFIG) if not (checkpoint / n).is_file()]
    missing = [n for n in (MODEL, OWN_AVERAGE) if not is_stored(checkpoint / n)] + missing
    try:
        averages = [] if missing else [*averages_of(checkpoint).values()]
        missing += [path.name for path in averages if not is_stored(path)]
        if missing:
            return f"{checkpoint} lacks {', '.join(missing)}"
        for path in (checkpoint / MODEL, *averages):
            Stored(path)
        stored_moments(checkpoint, read_state(checkpoint))
        if not (checkpoint / CONFIG).stat().st_size:
            return f"{checkpoint / CONFIG} is empty"
    except ValueError as error:
        return str(error)
    return None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has the weights of a checkpoint, in one piece or in shards."""
    return is_stored(folder / MODEL)


def stored_moments(checkpoint: Path, state: Mapping[str, Any]) -> Stored | None:
    """The optimizer's tensors that a state does not hold itself, or None where it does.

    Raises:
        ValueError: they are not there, or truncated.
    """
    return Stored(checkpoint / MOMENTS) if state.get("shards") else None


def export(checkpoint: Path) -> list[Path]:
    """Put each weights file of a checkpoint together from its shards, where it is in shards.

    Returns:
        the model, its own average, and the others.
    Raises:
        ValueError: a shard cannot be read, or the folder cannot be written to.
    """
    return [whole_file(path) for path in (checkpoint / MODEL, *averages_of(checkpoint).values())]


def averages_of(checkpoint: Path) -> dict[str, Path]:
    """The files of a checkpoint's averages by the names of their profiles, the run's own first.

    Of a checkpoint from before averages had names, the only one is called "ema".

    Raises:
        ValueError: the file of the own average is missing or truncated.
    """
    names = Stored(checkpoint / OWN_AVERAGE).header.get("averages", "ema").split()
    return {n: checkpoint / file for n, file in zip(names, average_files(names), strict=True)}


def averages_to_resume(checkpoint: Path, profiles: Sequence[Profile]) -> list[Path]:
    """The files from which a run goes on with averages by these profiles, in their order.

    The decay of the run's own exponential average may be changed on the way; any other average is
    one of the whole training, and cannot begin in its midst.

    Raises:
        ValueError: the checkpoint lacks one of the averages.
    """
    have = averages_of(checkpoint)
    own = next(iter(have))
    if isinstance(profiles[0], Exponential) and not own.startswith("std"):
        have.setdefault(profiles[0].name, have[own])
    lacking = [p.name for p in profiles if p.name not in have]
    if lacking:
        raise ValueError(
            f"cannot go on with the average {lacking[0]}: {checkpoint} has {', '.join(have)}, and"
            " an average is one of the whole training; leave train.ema and train.post_hoc as they"
            " were, or start a new run"
        )
    return [have[p.name] for p in profiles]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Step, images and optimizer state of a checkpoint, on the CPU.

    Raises:
        ValueError: the file is truncated or holds more than plain data.
    """
    path = checkpoint / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(state, dict) or not state.keys() >= {"step", "images", "optimizer", "scaler"}:
        raise ValueError(f"{path} is not the state of a run")
    return state


def read_evaluation(checkpoint: Path) -> dict[str, Any]:
    """The record of the evaluation that made a checkpoint the best.

    Raises:
        ValueError: there is none, or it is no record.
    """
    path = checkpoint / _EVALUATION
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read: {first_line(error)}; move {checkpoint} away to go on"
        ) from None
    if not isinstance(record, dict) or not record.keys() >= {"step", "evaluation"}:
        raise ValueError(
            f"{path} is not the record of an evaluation; move {checkpoint} away to go on"
        )
    return record


def _rename_over(path: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    path.rename(target)
