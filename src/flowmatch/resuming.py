"""Going on with a run: which config, and what it changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowmatch.config import Config, flat, load_config, to_plain
from flowmatch.data import Latent

MODEL = ("network", "path", "predict")
"""The sections of a config that the weights are bound to."""


@dataclass(frozen=True)
class Difference:
    """A key whose value in a run differs from the one asked for."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.before!r}, is {self.now!r}"


def differences(before: Config, now: Config) -> list[Difference]:
    """The keys in which two configs differ, dotted."""
    a, b = flat(to_plain(before)), flat(to_plain(now))
    keys = [*a, *(k for k in b if k not in a)]
    return [Difference(k, a.get(k), b.get(k)) for k in keys if a.get(k) != b.get(k)]


def config_to_resume(
    run_dir: Path, config_file: str | None, overrides: Sequence[str]
) -> tuple[Config, list[Difference]]:
    """The config to go on with, and what it changes about the run.

    Without a config file it is the run's own, with the overrides applied.

    Raises:
        ValueError: there is no run, or the change is one that the weights cannot follow.
    """
    own = run_dir / "config.yaml"
    if not own.is_file():
        raise ValueError(f"there is no run to resume in {run_dir}; leave out --resume to start one")
    before = load_config(own)
    now = load_config(config_file or own, overrides)
    if isinstance(now.data, Latent) and isinstance(before.data, Latent):
        kept = now.data.statistics or before.data.statistics
        now = replace(now, data=replace(now.data, statistics=kept))
    changes = differences(before, now)
    fatal = [c for c in changes if c.key.split(".")[0] in MODEL]
    if fatal:
        asked = [word for word in overrides if re.split("[.=]", word)[0] in MODEL]
        out = " and ".join((["-c"] if config_file else []) + asked)
        raise ValueError(
            f"cannot resume {run_dir} with another model: {'; '.join(map(str, fatal))};"
            f" leave out {out} to keep the run's own model, or start a new run"
        )
    return now, changes
