"""What a checkpoint holds, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmatch.training.background import Writers
from flowmatch.training.ema import Profile
from flowmatch.training.files import write_durably, write_tensors

MODEL, OWN_AVERAGE = "model.safetensors", "model_ema.safetensors"
MOMENTS = "optimizer.safetensors"
"""The optimizer's tensors in a sharded checkpoint; else they are in the state."""
STATE, CONFIG = "state.pt", "config.yaml"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All of a checkpoint, on the CPU; of a sharded run, what one of its processes has of it.

    Args:
        network: its tensors as trained.
        averages: those of its averages by their profiles, the run's own first.
        state: step, images and all that is small; in a run that is not sharded, the optimizer.
        config_yaml: the resolved config.
        moments: the optimizer's tensors in a sharded run, else None.
        starts: the first of the rows that are here, by the names of tensors that are sharded.
    """

    network: Tensors
    averages: Mapping[Profile, Tensors]
    state: Mapping[str, Any]
    config_yaml: str
    moments: Tensors | None = None
    starts: Mapping[str, int] | None = None

    def write(self, folder: Path, writers: Writers) -> None:
        """Write the files into a folder that exists, and wait for the disk."""
        writers.all(lambda: self._write_tensors(folder, writers))
        writers.first(lambda: self._write_rest(folder))

    def _write_tensors(self, folder: Path, writers: Writers) -> None:
        names = [profile.name for profile in self.averages]
        about = {"format": "pt", "step": str(self.state["step"])}
        about["images"] = str(self.state["images"])
        self._write_file(folder / MODEL, self.network, about, writers)
        if self.moments is not None:
            self._write_file(folder / MOMENTS, self.moments, about, writers)
        about["averages"] = " ".join(names)
        for file, (profile, average) in zip(
            average_files(names), self.averages.items(), strict=True
        ):
            header = about | {"profile": profile.name, "title": profile.title}
            self._write_file(folder / file, average, header, writers)

    def _write_file(
        self, path: Path, tensors: Tensors, header: dict[str, str], writers: Writers
    ) -> None:
        if writers.shard is None:
            write_tensors(path, tensors, header)
        else:
            writers.shard.write(path, tensors, self.starts or {}, header)

    def _write_rest(self, folder: Path) -> None:
        write_durably(folder / STATE, lambda p: torch.save(dict(self.state), p))
        write_durably(folder / CONFIG, lambda p: p.write_text(self.config_yaml))


def average_files(names: Sequence[str]) -> list[str]:
    """The files of averages by the names of their profiles, the run's own first."""
    return [OWN_AVERAGE, *(f"model_ema-{name}.safetensors" for name in names[1:])]
