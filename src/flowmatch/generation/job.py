"""A sampling job: what to draw, how, and where to put it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flowmatch.dealing import Dealt, classes_dealt
from flowmatch.flow import Flow
from flowmatch.generation.compiling import Compile, check_compile
from flowmatch.guidance import Guidance
from flowmatch.pictures import Animation, check_animation
from flowmatch.room import require_space
from flowmatch.solvers import GridSolver, SolverConfig

Format = Literal["png", "npz", "webdataset"]

SHARD_SIZE = 1000
"""Seeds of a webdataset shard, unless the user says otherwise."""


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """What to draw and where to put it.

    Args:
        seeds: which samples, in increasing order, e.g. `range(1000)`.
        save_dir: the folder for `00000.png ...` (or `samples.npz`, or `shard-000000.tar ...`), a
            contact sheet and `sampling.json`.
        solver: the integrator.
        batch: samples that a process computes at once, or "auto": the fastest on a CPU, the largest
            power of two that fits on a GPU. It changes nothing but speed and memory.
        stream: sample i depends on (stream, i) alone; the command's --seed.
        classes: dealt in turn: sample i is of class `classes[i % len(classes)]`; None deals all.
        conditions: of a model with other conditions, what is dealt of them (and of no class, if
            neither it nor `classes` say one); None of a model without.
        guidance: how the field is guided.
        format: "png", one image a file; "npz": `samples` (uint8 [N, H, W, C] for images, float32
            for anything else), `labels` and `seeds`; or "webdataset": tar files of `00005.png` (or
            `.npy`), `00005.cls` and `00005.json`.
        shard_size: shard k of a webdataset holds the samples from `k * shard_size` on.
        trajectory: animate the first samples as "gif" or "mp4"; None does not.
        compile: what `torch.compile` takes: nothing, the network, or the whole integration.
        weights_hash, weights_title: name the weights in the record, and say which average they are.
        weak_hash: names the weak model of autoguidance; None without one.
        field_hash: names what turns the weights into a field, see `facts.field_hash`.
        own_field_hash: the same without overrides: what older records mean, which name none.
    """

    seeds: Sequence[int]
    save_dir: Path
    solver: SolverConfig
    batch: int | Literal["auto"] = 100
    stream: int = 8888
    classes: tuple[int, ...] | None = None
    conditions: Dealt | None = None
    guidance: Guidance = Guidance()
    format: Format = "png"
    shard_size: int = SHARD_SIZE
    trajectory: Animation | None = None
    compile: Compile = "off"
    weights_hash: str = ""
    weights_title: str = ""
    weak_hash: str | None = None
    field_hash: str = ""
    own_field_hash: str = ""

    def check(self, flow: Flow, weak: Flow | None = None) -> None:
        """Refuse a job that cannot be done, before anything is written."""
        assert self.seeds
        if self.batch != "auto" and self.batch < 1:
            raise ValueError(f"--bspp must be at least 1, got {self.batch}")
        if self.shard_size < 1:
            raise ValueError(f"--shard-size must be at least 1, got {self.shard_size}")
        self._check_classes(flow.num_classes)
        self.guidance.check(flow, weak)
        if self.guidance.momentum and not isinstance(self.solver, GridSolver):
            raise ValueError(
                f"guidance with momentum needs a solver on a time grid, not {self.solver.kind};"
                " use e.g. heun"
            )
        if weak is not None and self.guidance.off:
            raise ValueError("guidance scale 1 is off; with --autoguide give --guidance above 1")
        shape = flow.decoded_shape
        assert shape is not None
        if self.format == "png" and len(shape) != 3:
            raise ValueError(
                f"samples of shape {shape} are no images; use --format npz or webdataset"
            )
        check_compile(self.compile, self.solver)
        if self.trajectory is not None:
            check_animation(self.trajectory)
            if len(shape) != 3 and (len(shape) != 1 or shape[0] < 2):
                raise ValueError(f"samples of shape {shape} make no picture; no --trajectory")
        need = len(self.seeds) * int(np.prod(shape)) * (1 if len(shape) == 3 else 4)
        require_space(self.save_dir, need, f"{len(self.seeds):,} samples")

    def dealt(self, num_classes: int | None) -> Dealt:
        """What the samples are conditioned on."""
        if self.classes is None:
            return classes_dealt(num_classes) if self.conditions is None else self.conditions
        others = {} if self.conditions is None else self.conditions.values
        return Dealt({**others, "label": torch.tensor(self.classes)})

    def labels(self, num_classes: int | None, seeds: Sequence[int]) -> list[int] | None:
        """The classes of samples; None of a model without classes, or if none is asked for."""
        found = self.dealt(num_classes).values.get("label")
        if not isinstance(found, Tensor):
            return None
        labels: list[int] = found[torch.tensor(seeds) % len(found)].tolist()
        return labels

    def _check_classes(self, num_classes: int | None) -> None:
        if self.classes is None:
            return
        if num_classes is None:
            raise ValueError("this model takes no class label; leave out --class")
        for label in self.classes:
            if not 0 <= label < num_classes:
                raise ValueError(
                    f"class {label} is outside the model's classes 0 to {num_classes - 1}"
                )
