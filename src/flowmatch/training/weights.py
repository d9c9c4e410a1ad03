"""Files of weights: read, named by their content, and loaded where they fit or say why not.

A safetensors file says in its header which average it is: `profile` ("std0.05", the name that
--weights takes), `title` ("EMA std 0.05", what protocols say), `step` and `images`.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn


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
            f"{path} cannot be read as weights, it may be truncated: {first_line(error)}"
        ) from None
    weights = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path} holds no state dict; expected {{'model': {{name: tensor}}}}")
    return weights


def read_header(path: Path) -> dict[str, str]:
    """What a weights file says of itself; nothing if it is no safetensors file.

    Raises:
        ValueError: there is no such file, or it is truncated.
    """
    if not path.is_file():
        raise ValueError(f"there is no weights file at {path}")
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:  # checks the length against the header
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as weights, it may be truncated: {first_line(error)}"
        ) from None


def hash_weights(path: Path) -> str:
    """Twelve hexadecimal digits that name the content of a weights file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Load weights that must match the network exactly.

    Raises:
        ValueError: names the missing and unknown keys and the shapes that differ.
    """
    check_fit(network, {name: [*value.shape] for name, value in weights.items()}, where)
    network.load_state_dict(dict(weights))


def check_fit(network: nn.Module, shapes: Mapping[str, list[int]], where: Path) -> None:
    """Refuse weights that do not match a network exactly.

    Raises:
        ValueError: names the missing and unknown keys and the shapes that differ.
    """
    own = {name: [*value.shape] for name, value in network.state_dict().items()}
    missing = [k for k in own if k not in shapes]
    unknown = [k for k in shapes if k not in own]
    different = [
        f"{k} is {shapes[k]}, the config's network has {own[k]}"
        for k in own
        if k in shapes and shapes[k] != own[k]
    ]
    found = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
        for what, items in (
            ("missing", missing),
            ("unknown", unknown),
            ("of other shape", different),
        )
        if items
    ]
    if found:
        raise ValueError(
            f"the weights in {where} do not fit the config's network: {'; '.join(found)};"
            " use the config they were trained with, or `flowmatch import` for foreign weights"
        )


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error) or type(error).__name__).splitlines()[0]
