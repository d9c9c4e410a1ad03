"""What protocols say of a model: its weights, and what turns them into a field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmatch.config import Config
from flowmatch.data import Latent
from flowmatch.runs import weights_file, weights_title
from flowmatch.training.checkpoint import read_state
from flowmatch.training.weights import hash_weights, read_header


def model_facts(run_dir: Path, checkpoint: Path, weights: str, config: Config) -> dict[str, Any]:
    """What a protocol says about weights of a run, named as for `weights_file`.

    `field` is that of the config, overrides included: the same weights under another path are
    another model.
    """
    path = weights_file(checkpoint, weights)
    if path.parent == checkpoint:
        state = read_state(checkpoint)
        step, images = state["step"], state["images"]
    else:  # a file says it of itself, or nobody knows
        header = read_header(path)
        step, images = (int(header[k]) if k in header else None for k in ("step", "images"))
    return {
        "name": str(run_dir),
        "weights": weights_title(path),
        "hash": hash_weights(path),
        "field": field_hash(config),
        "step": step,
        "images_seen": images,
    }


def field_hash(config: Config) -> str:
    """12 hexadecimal digits of what turns weights into a field, and the field into samples.

    That is path, prediction, network and shape, and of latents what they are normalised by.
    Training, solver and the data themselves have no part in it. What is left at its default does
    not count, so that a setting that a later version adds changes nothing.
    """
    data = config.data
    statistics = data.statistics if isinstance(data, Latent) else None
    parts = [config.path, config.predict, config.network, list(data.shape), statistics]
    text = json.dumps([_said(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _said(node: Any) -> Any:
    """A part of a config as JSON has it: the kinds, and what differs from the defaults."""
    if dataclasses.is_dataclass(node):
        values = {
            f.name: getattr(node, f.name) for f in dataclasses.fields(node) if _counts(f, node)
        }
        return {name: _said(value) for name, value in values.items()}
    if isinstance(node, Mapping):
        return {str(name): _said(value) for name, value in node.items()}
    return [_said(value) for value in node] if isinstance(node, list | tuple) else node


def _counts(field: dataclasses.Field[Any], node: Any) -> bool:
    make = field.default_factory
    default = field.default if make is dataclasses.MISSING else make()
    return field.name == "kind" or bool(getattr(node, field.name) != default)
