"""flowmatch: train, sample, tune, evaluate and use flow-matching models in PyTorch.

Names are imported when they are first used, so that the command answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flowmatch import augmentation as augmentation
    from flowmatch import couplings as couplings
    from flowmatch import data as data
    from flowmatch import editing as editing
    from flowmatch import features as features
    from flowmatch import guidance as guidance
    from flowmatch import interop as interop
    from flowmatch import likelihood as likelihood
    from flowmatch import losses as losses
    from flowmatch import metrics as metrics
    from flowmatch import networks as networks
    from flowmatch import paths as paths
    from flowmatch import solvers as solvers
    from flowmatch import times as times
    from flowmatch import tuning as tuning
    from flowmatch.config import load_config as load_config
    from flowmatch.flow import Flow as Flow
    from flowmatch.guidance import CountNFE as CountNFE
    from flowmatch.guidance import Guidance as Guidance
    from flowmatch.guidance import Guided as Guided
    from flowmatch.likelihood import bits_per_dim as bits_per_dim
    from flowmatch.likelihood import invert as invert
    from flowmatch.likelihood import log_prob as log_prob
    from flowmatch.runs import build_trainer as build_trainer
    from flowmatch.runs import load as load
    from flowmatch.sampling import bind as bind
    from flowmatch.sampling import noise as noise
    from flowmatch.sampling import sample as sample
    from flowmatch.tensors import to_uint8 as to_uint8
    from flowmatch.tuning import tune as tune

_ROOMS = (
    "augmentation",
    "couplings",
    "data",
    "editing",
    "features",
    "guidance",
    "interop",
    "likelihood",
    "losses",
    "metrics",
    "networks",
    "paths",
    "solvers",
    "times",
    "tuning",
)
_HOMES = {
    "CountNFE": "guidance",
    "Flow": "flow",
    "Guidance": "guidance",
    "Guided": "guidance",
    "bind": "sampling",
    "bits_per_dim": "likelihood",
    "build_trainer": "runs",
    "invert": "likelihood",
    "load": "runs",
    "load_config": "config",
    "log_prob": "likelihood",
    "noise": "sampling",
    "sample": "sampling",
    "to_uint8": "tensors",
    "tune": "tuning",
}

__all__ = ["__version__", *_ROOMS, *_HOMES]  # pyright: ignore


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"flowmatch.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"flowmatch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flowmatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
