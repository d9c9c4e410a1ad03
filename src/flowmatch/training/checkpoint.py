"""Checkpoints: complete or absent, never half written.

    ckpt/step0010000/{model.safetensors, model_ema.safetensors, state.pt, config.yaml}
                      and a model_ema-NAME.safetensors of every further average
    ckpt/best/        the same and evaluation.json, in runs that evaluate while they train

A checkpoint is written under a temporary name, flushed to the disk and renamed, so a kill at any
moment leaves the older ones whole. Nothing from a checkpoint is ever executed.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowmatch.training.background import Background
from flowmatch.training.ema import Exponential, Profile
from flowmatch.training.weights import first_line, read_header

MODEL, OWN_AVERAGE = "model.safetensors", "model_ema.safetensors"
Tensors = Mapping[str, Tensor]
_STATE, _CONFIG, _EVALUATION = "state.pt", "config.yaml", "evaluation.json"


class Checkpoints:
    """The checkpoints of a run directory, oldest first.

    Args:
        run_dir: the run directory; its `ckpt/` is made by the first save.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "ckpt"
        self._writer = Background()

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

    def begin_save(self, step: int, **contents: Any) -> None:
        """`save` in the background; the tensors must not change meanwhile.

        Whatever else is asked of the checkpoints waits for it. An error is raised then.
        """
        self._writer.start(functools.partial(self.save, step, **contents))

    def finish(self) -> None:
        """Wait until the last checkpoint that was begun is on the disk."""
        self._writer.finish()

    def save(
        self,
        step: int,
        *,
        network: Tensors,
        averages: Mapping[Profile, Tensors],
        state: Mapping[str, Any],
        config_yaml: str,
        keep_last: int,
    ) -> Path:
        """Write the checkpoint of a step and delete all but the newest `keep_last`.

        Args:
            step: of the training.
            network: its tensors as trained, on the CPU.
            averages: those of its averages by their profiles, the run's own first.
            state: as `read_state` gives it back.
            config_yaml: the resolved config.
            keep_last: checkpoints that are there afterwards.
        """
        final = self.folder / f"step{step:07d}"
        partial = self._write_partial(final.name, network, averages, state, config_yaml)
        flush_folder(partial)
        if final.exists():  # an earlier attempt at the same step, left by a resume from before it
            shutil.rmtree(final)
        partial.rename(final)
        flush_folder(self.folder)
        older = [p for p in self.all() if p != final and int(p.name[4:]) < step]
        for path in older[: max(len(older) - (keep_last - 1), 0)]:
            shutil.rmtree(path)
        return final

    def save_best(
        self,
        evaluation: Mapping[str, Any],
        *,
        network: Tensors,
        averages: Mapping[Profile, Tensors],
        state: Mapping[str, Any],
        config_yaml: str,
    ) -> Path:
        """Write the best checkpoint, with the record of its evaluation, in place of the last best.

        The last best is there under one name or another until the new one is.
        """
        self.finish()
        partial = self._write_partial("best", network, averages, state, config_yaml)
        _write(partial / _EVALUATION, lambda p: p.write_text(json.dumps(evaluation, indent=2)))
        flush_folder(partial)
        if self._best.exists():
            self._best.rename(self._replaced)
        partial.rename(self._best)
        flush_folder(self.folder)
        if self._replaced.exists():
            shutil.rmtree(self._replaced)
        return self._best

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

    def _write_partial(
        self,
        name: str,
        network: Tensors,
        averages: Mapping[Profile, Tensors],
        state: Mapping[str, Any],
        config_yaml: str,
    ) -> Path:
        """The files of a checkpoint under a temporary name, each of them on the disk."""
        self.clear_unfinished()
        partial = self.folder / f".partial-{name}"
        partial.mkdir(parents=True)
        names = [profile.name for profile in averages]
        about = {"format": "pt", "step": str(state["step"]), "images": str(state["images"])}
        write_tensors(partial / MODEL, network, about)
        about["averages"] = " ".join(names)
        for file, (profile, average) in zip(_average_files(names), averages.items(), strict=True):
            header = about | {"profile": profile.name, "title": profile.title}
            write_tensors(partial / file, average, header)
        _write(partial / _STATE, lambda p: torch.save(dict(state), p))
        _write(partial / _CONFIG, lambda p: p.write_text(config_yaml))
        return partial


def problems(checkpoint: Path) -> str | None:
    """Why a checkpoint folder cannot be read, or None if it can."""
    missing = [n for n in (MODEL, OWN_AVERAGE, _STATE, _CONFIG) if not (checkpoint / n).is_file()]
    try:
        averages = [] if missing else [*averages_of(checkpoint).values()]
        missing += [path.name for path in averages if not path.is_file()]
        if missing:
            return f"{checkpoint} lacks {', '.join(missing)}"
        for path in (checkpoint / MODEL, *averages):
            read_header(path)
        read_state(checkpoint)
        if not (checkpoint / _CONFIG).stat().st_size:
            return f"{checkpoint / _CONFIG} is empty"
    except ValueError as error:
        return str(error)
    return None


def averages_of(checkpoint: Path) -> dict[str, Path]:
    """The files of a checkpoint's averages by the names of their profiles, the run's own first.

    Of a checkpoint from before averages had names, the only one is called "ema".

    Raises:
        ValueError: the file of the own average is missing or truncated.
    """
    names = read_header(checkpoint / OWN_AVERAGE).get("averages", "ema").split()
    return {n: checkpoint / file for n, file in zip(names, _average_files(names), strict=True)}


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
    path = checkpoint / _STATE
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


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the state of a network on the CPU, as it is written."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }


def write_tensors(path: Path, tensors: Tensors, header: dict[str, str]) -> None:
    """Write a safetensors file, the same bytes for the same content, and wait for the disk."""

    def write(path: Path) -> None:
        save_file(dict(tensors), path, header)
        _sort_header(path)

    _write(path, write)


def flush_folder(path: Path) -> None:
    """Wait until the names of the files in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _average_files(names: Sequence[str]) -> list[str]:
    return [OWN_AVERAGE, *(f"model_ema-{name}.safetensors" for name in names[1:])]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    write(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sort_header(path: Path) -> None:
    """Order what a safetensors file says of itself: the library writes it in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(size))
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


def _rename_over(path: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    path.rename(target)
