"""Checkpoints: complete or absent, never half written; weights that fit or say why not.

    ckpt/step0010000/{model.safetensors, model_ema.safetensors, state.pt, config.yaml}

A checkpoint is written under a temporary name, flushed to the disk and renamed, so a kill at any
moment leaves the older ones whole. Nothing from a checkpoint is ever executed.
"""

from __future__ import annotations

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
        self.clear_unfinished()
        final = self.folder / f"step{step:07d}"
        partial = self.folder / f".partial-step{step:07d}"
        partial.mkdir(parents=True)
        metadata = {"format": "pt", "step": str(step)}
        _write(partial / _FILES[0], lambda p: save_file(_tensors(network), p, metadata))
        _write(partial / _FILES[1], lambda p: save_file(_tensors(network_ema), p, metadata))
        _write(partial / _FILES[2], lambda p: torch.save(dict(state), p))
        _write(partial / _FILES[3], lambda p: p.write_text(config_yaml))
        _flush_folder(partial)
        if final.exists():  # an earlier attempt at the same step, left by a resume from before it
            shutil.rmtree(final)
        partial.rename(final)
        _flush_folder(self.folder)
        older = [p for p in self.all() if p != final and int(p.name[4:]) < step]
        for path in older[: max(len(older) - (keep_last - 1), 0)]:
            shutil.rmtree(path)
        return final

    def set_aside_after(self, step: int) -> None:
        """Take the checkpoints after a step out of the way: training goes on from there.

        They are renamed, not deleted, and never picked as the newest again.
        """
        for path in self.all():
            if int(path.name[4:]) > step:
                aside = path.with_name(f"superseded-{path.name}")
                if aside.exists():
                    shutil.rmtree(aside)
                path.rename(aside)

    def clear_unfinished(self) -> None:
        """Remove what a killed save left behind."""
        for path in self.folder.glob(".partial-*"):
            shutil.rmtree(path)


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


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
