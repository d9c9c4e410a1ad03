"""Checkpoints: complete or absent, never half written; weights that fit or say why not.

    ckpt/step0010000/{model.safetensors, model_ema.safetensors, state.pt, config.yaml}
    ckpt/best/        the same and evaluation.json, in runs that evaluate while they train

A checkpoint is written under a temporary name, flushed to the disk and renamed, so a kill at any
moment leaves the older ones whole. Nothing from a checkpoint is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_FILES = ("model.safetensors", "model_ema.safetensors", "state.pt", "config.yaml")
_EVALUATION = "evaluation.json"


class Checkpoints:
    """The checkpoints of a run directory, oldest first.

    Args:
        run_dir: the run directory; its `ckpt/` is made by the first save.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "ckpt"

    def all(self) -> list[Path]:
        """Every finished checkpoint folder, by step."""
        found = [p for p in self.folder.glob("step*") if p.name[4:].isdigit() and p.is_dir()]
        return sorted(found, key=lambda p: int(p.name[4:]))

    def newest(self) -> Path | None:
        """The newest checkpoint that can be read; broken ones are passed over."""
        return next((p for p in reversed(self.all()) if not problems(p)), None)

    def best(self) -> Path | None:
        """The checkpoint with the best evaluation, or None: no evaluation yet, or not readable."""
        # a kill between the two renames of a replacement leaves the old best under its second name
        found = (p for p in (self._best, self._replaced) if p.is_dir() and not problems(p))
        return next(found, None)

    def save(
        self,
        step: int,
        *,
        network: nn.Module,
        network_ema: nn.Module,
        state: Mapping[str, Any],
        config_yaml: str,
        keep_last: int,
    ) -> Path:
        """Write the checkpoint of a step and delete all but the newest `keep_last`."""
        final = self.folder / f"step{step:07d}"
        partial = self._write_partial(final.name, network, network_ema, state, config_yaml)
        _flush_folder(partial)
        if final.exists():  # an earlier attempt at the same step, left by a resume from before it
            shutil.rmtree(final)
        partial.rename(final)
        _flush_folder(self.folder)
        older = [p for p in self.all() if p != final and int(p.name[4:]) < step]
        for path in older[: max(len(older) - (keep_last - 1), 0)]:
            shutil.rmtree(path)
        return final

    def save_best(
        self,
        evaluation: Mapping[str, Any],
        *,
        network: nn.Module,
        network_ema: nn.Module,
        state: Mapping[str, Any],
        config_yaml: str,
    ) -> Path:
        """Write the best checkpoint, with the record of its evaluation, in place of the last best.

        The last best is there under one name or another until the new one is.
        """
        partial = self._write_partial("best", network, network_ema, state, config_yaml)
        _write(partial / _EVALUATION, lambda p: p.write_text(json.dumps(evaluation, indent=2)))
        _flush_folder(partial)
        if self._best.exists():
            self._best.rename(self._replaced)
        partial.rename(self._best)
        _flush_folder(self.folder)
        if self._replaced.exists():
            shutil.rmtree(self._replaced)
        return self._best

    def set_aside_after(self, step: int) -> None:
        """Take the checkpoints after a step out of the way: training goes on from there.

        They are renamed, not deleted, and never picked as the newest or the best again.
        """
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
        network: nn.Module,
        network_ema: nn.Module,
        state: Mapping[str, Any],
        config_yaml: str,
    ) -> Path:
        """The files of a checkpoint under a temporary name, each of them on the disk."""
        self.clear_unfinished()
        partial = self.folder / f".partial-{name}"
        partial.mkdir(parents=True)
        metadata = {"format": "pt", "step": str(state["step"])}
        _write(partial / _FILES[0], lambda p: save_file(_tensors(network), p, metadata))
        _write(partial / _FILES[1], lambda p: save_file(_tensors(network_ema), p, metadata))
        _write(partial / _FILES[2], lambda p: torch.save(dict(state), p))
        _write(partial / _FILES[3], lambda p: p.write_text(config_yaml))
        return partial


def problems(checkpoint: Path) -> str | None:
    """Why a checkpoint folder cannot be read, or None if it can."""
    missing = [name for name in _FILES if not (checkpoint / name).is_file()]
    if missing:
        return f"{checkpoint} lacks {', '.join(missing)}"
    try:
        for name in _FILES[:2]:
            with safe_open(checkpoint / name, "pt") as file:  # checks length against the header
                file.keys()
        read_state(checkpoint)
        if not (checkpoint / _FILES[3]).stat().st_size:
            return f"{checkpoint / _FILES[3]} is empty"
    except ValueError as error:
        return str(error)
    except (SafetensorError, OSError) as error:
        return f"{checkpoint} is damaged: {error}"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Step, images and optimizer state of a checkpoint, on the CPU.

    Raises:
        ValueError: the file is truncated or holds more than plain data.
    """
    path = checkpoint / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {_first_line(error)}") from None
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
            f"{path} cannot be read: {_first_line(error)}; move {checkpoint} away to go on"
        ) from None
    if not isinstance(record, dict) or not record.keys() >= {"step", "evaluation"}:
        raise ValueError(
            f"{path} is not the record of an evaluation; move {checkpoint} away to go on"
        )
    return record


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a `.pt` file with `{"model": state_dict}`.

    Raises:
        ValueError: there is no such file, or it is truncated or of another kind.
    """
    if not path.is_file():
        raise ValueError(f"there is no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} cannot be read as weights, it may be truncated: {_first_line(error)}"
        ) from None
    weights = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path} holds no state dict; expected {{'model': {{name: tensor}}}}")
    return weights


def hash_weights(path: Path) -> str:
    """Twelve hexadecimal digits that name the content of a weights file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Load weights that must match the network exactly.

    Raises:
        ValueError: names the missing and unknown keys and the shapes that differ.
    """
    own = network.state_dict()
    missing = [k for k in own if k not in weights]
    unknown = [k for k in weights if k not in own]
    shapes = [
        f"{k} is {list(weights[k].shape)}, the config's network has {list(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    found = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
        for what, items in (("missing", missing), ("unknown", unknown), ("of other shape", shapes))
        if items
    ]
    if found:
        raise ValueError(
            f"the weights in {where} do not fit the config's network: {'; '.join(found)};"
            " use the config they were trained with, or `flowmatch import` for foreign weights"
        )
    network.load_state_dict(dict(weights))


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}


def _write(path: Path, write: Callable[[Path], object]) -> None:
    write(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _rename_over(path: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    path.rename(target)


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
