"""The protocol: everything that a number depends on, kept with it and compared before ranking."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import torch

import flowmatch


def versions() -> dict[str, str]:
    """The libraries that make a number."""
    return {
        "flowmatch": flowmatch.__version__,
        "torch": torch.__version__,
        "torch_fidelity": importlib.metadata.version("torch-fidelity"),
    }


def digest(protocol: Mapping[str, Any]) -> str:
    """Six hexadecimal digits that name a protocol."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:6]


def sentence(protocol: Mapping[str, Any], row: Mapping[str, Any] | None) -> str:
    """One line that says how a number came about; printed with it and stored beside it.

    Args:
        protocol: that of the table.
        row: the row's own part: solver, steps, nfe; None leaves that to the columns of a table.
    """
    parts = [
        _features(protocol["features"]),
        _samples(protocol["samples"]),
        _reference(protocol["reference"]),
        _solver(row),
        _guidance(protocol.get("guidance")),
        _model(protocol["model"]),
        protocol["precision"],
        ", ".join(f"{name} {version}" for name, version in protocol["versions"].items()),
    ]
    return " | ".join(part for part in parts if part)


def _features(features: Mapping[str, Any]) -> str:
    if features["kind"] == "none":
        return "on the samples themselves"
    text = f"features {features['kind']} {features['hash']} ({features['dims']} dims"
    if "accuracy" in features:
        text += f", {features['accuracy']:.1%} held-out accuracy at {features['task']}"
    return f"{text})"


def _samples(samples: Mapping[str, Any]) -> str:
    text = f"{samples['count']:,} samples"
    if samples["sets"] > 1:
        text += f" x {samples['sets']} sets"
    if samples.get("seed") is not None:
        text += f", seed {samples['seed']}"
    return text + (f", {samples['labels']}" if samples.get("labels") else "")


def _reference(reference: Mapping[str, Any]) -> str:
    return f"reference {reference['name']} {reference['hash']} ({reference['count']:,})"


def _solver(row: Mapping[str, Any] | None) -> str | None:
    if row is None:
        return "solver, steps and NFE as in the row"
    if row.get("solver") is None:
        return None
    steps = f" {row['steps']} steps" if row.get("steps") else ""
    end = ", bare end" if row.get("safe_end") is False else ""
    return f"{row['solver']}{steps}, {row['time_grid']} grid{end}, {row['nfe']:g} NFE"


OWN_TIMES = "own times"


def grid_in_words(grid: str | None) -> str | None:
    """A time grid where it does not go without saying; of one's own times, only that they are."""
    if grid in (None, "uniform", "adaptive"):
        return None
    return OWN_TIMES if grid.startswith("0,") else grid


def _guidance(guidance: float | str | None) -> str | None:
    if guidance is None:
        return None
    return f"guidance {guidance}" if isinstance(guidance, str) else f"guidance {guidance:g}"


def _model(model: Mapping[str, Any]) -> str:
    if "weights" not in model:
        return f"stored samples {model['name']} {model['hash']}"
    text = f"{model['weights']} weights {model['hash']}"
    text += f", field {model['field']}" if "field" in model else ""
    seen = model.get("images_seen")
    text += f", {seen:,} images seen" if seen is not None else ""
    return text + (f", autoguided by {model['autoguide']}" if "autoguide" in model else "")
