"""All samples in one npz file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from flowmatch.generation.drawing import Drawn
from flowmatch.generation.job import SampleJob
from flowmatch.generation.store import Store

Arrays = dict[str, np.ndarray]


class ArchiveStore(Store):
    """`samples.npz`: `samples`, `labels` and `seeds`, joined at the end from a part a batch."""

    def __init__(self, job: SampleJob) -> None:
        super().__init__(job)
        self._final, self._parts = job.save_dir / "samples.npz", job.save_dir / ".parts"

    def missing(self, process: int, processes: int) -> list[int]:
        mine = self.job.seeds[process::processes]
        there = {int(seed) for path in self._files() for seed in _seeds(path)}
        return [seed for seed in mine if seed not in there]

    def write(self, drawn: Drawn) -> None:
        x = drawn.x.permute(0, 2, 3, 1) if drawn.x.ndim == 4 else drawn.x
        labels = np.array(drawn.labels or [], np.int64 if drawn.labels else np.float32)
        arrays = {"samples": x.numpy(), "labels": labels, "seeds": np.array(drawn.seeds, np.int64)}
        self._parts.mkdir(exist_ok=True)
        _save(self._parts / f"{drawn.seeds[0]:09d}.npz", arrays)

    def join(self) -> None:
        if self._parts.is_dir():
            parts = [_read(path) for path in self._files()]
            arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
            seeds, rows = np.unique(arrays.pop("seeds"), return_index=True)
            arrays = {k: v[rows] if len(v) else v for k, v in arrays.items()}
            _save(self._final, arrays | {"seeds": seeds})
            shutil.rmtree(self._parts)

    def held(self) -> list[int]:
        return [int(seed) for seed in _seeds(self._final)]

    def first(self, count: int) -> Tensor:
        arrays = _read(self._final)
        rows = np.searchsorted(arrays["seeds"], list(self.job.seeds[:count]))
        x = torch.from_numpy(arrays["samples"][rows])
        return x.permute(0, 3, 1, 2) if x.ndim == 4 else x

    def _files(self) -> Sequence[Path]:
        return [self._final] * self._final.exists() + sorted(self._parts.glob("[0-9]*.npz"))


def _save(path: Path, arrays: Arrays) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _read(path: Path, *names: str) -> Arrays:
    """Arrays of a file, all or those named; older files have no seeds, which then are 0, 1, ..."""
    try:
        with np.load(path) as archive:
            found = {k: archive[k] for k in archive.files if not names or k in names}
            if "seeds" not in found:
                found["seeds"] = np.arange(len(archive["samples"]))
            return found
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; remove it to draw it again"
        ) from None


def _seeds(path: Path) -> np.ndarray:
    return _read(path, "seeds")["seeds"]
