"""Snapshots of averages, from which averages of other widths are put together after the training.

RUN/ema/snapshot-step0010000-std0.05.safetensors
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowmatch.component import Component
from flowmatch.training.ema import Power, Profile
from flowmatch.training.files import flush_folder, write_tensors
from flowmatch.training.sharding import tensors_of
from flowmatch.training.weights import read_header

_STEP = re.compile(r"step(\d{7,})")


@dataclass(frozen=True, kw_only=True)
class PostHoc(Component):
    """Averages by power profiles that are tracked and of which snapshots are kept.

    Args:
        stds: their relative standard deviations; two that lie apart tell the most.
        every_steps, every_images: distance of the snapshots, exactly one of them; the last step of
            the training has one too.
        precision: "fp32", or "fp16" for files of half the size, whose weights are rounded to 11
            bits.
    """

    stds: tuple[float, ...] = (0.05, 0.1)
    every_steps: int | None = None
    every_images: int | None = None
    precision: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        if (self.every_steps is None) == (self.every_images is None):
            raise ValueError("give every_steps or every_images, exactly one of them")
        for name in ("every_steps", "every_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.stds or len({*self.stds}) < len(self.stds):
            raise ValueError(f"stds are one or more numbers, all different, got {[*self.stds]}")
        for std in self.stds:
            Power(std=std)


class Snapshot(NamedTuple):
    """A file in which a power average is kept."""

    path: Path
    std: float
    """The average's relative standard deviation."""
    step: int
    images: int
    """Seen until then."""


class Snapshots:
    """The snapshots of a run directory.

    Args:
        run_dir: the run directory; its `ema/` is made by the first save.
        kept: which averages are kept; None where the training keeps none.
        writes: whether this process writes them; the others lend it their shards.
    """

    def __init__(self, run_dir: Path, kept: PostHoc | None = None, *, writes: bool = True) -> None:
        self.folder, self._kept, self._writes = run_dir / "ema", kept, writes

    def all(self) -> list[Snapshot]:
        """Every snapshot, by step and width.

        Raises:
            ValueError: one of them is truncated or says nothing of itself.
        """
        found = [_open(path) for path in self.folder.glob("snapshot-*.safetensors")]
        return sorted(found, key=lambda s: (s.images, s.std))

    def save(self, averages: Mapping[Profile, nn.Module], *, step: int, images: int) -> None:
        """Keep some of the averages, each complete or not at all; called by all processes.

        Args:
            averages: averaged networks by their profiles.
            step: of the training.
            images: seen until then.
        """
        assert self._kept is not None  # else no step keeps any
        self.folder.mkdir(exist_ok=True)
        for std in self._kept.stds:
            profile = Power(std=std)
            tensors = tensors_of(averages[profile])
            if not self._writes:
                continue
            if self._kept.precision == "fp16":  # buffers may be frequencies, which bear no rounding
                learned = dict(averages[profile].named_parameters())
                tensors |= {name: _halved(tensors[name]) for name in learned}
            path = self.folder / f"snapshot-step{step:07d}-{profile.name}.safetensors"
            write_average(path, tensors, profile.name, profile.title, step=step, images=images)
            path.with_name(f"superseded-{path.name}").unlink(missing_ok=True)

    def set_aside_after(self, step: int) -> None:
        """Take what is of later steps out of the way: training goes on from this one.

        They are renamed, and deleted when their step has been done anew. Averages that were put
        together from such snapshots go with them.
        """
        for path in self.folder.glob("*.safetensors"):
            named = _STEP.search(path.name)
            if named and int(named[1]) > step and not path.name.startswith("superseded-"):
                path.replace(path.with_name(f"superseded-{path.name}"))

    def clear_unfinished(self) -> None:
        """Remove what a killed save left behind."""
        for path in self.folder.glob(".partial-*"):
            path.unlink()


def write_average(
    path: Path, tensors: dict[str, Tensor], name: str, title: str, *, step: int, images: int
) -> None:
    """Write an average with what it says of itself, complete or not at all."""
    header = {"format": "pt", "profile": name, "title": title}
    header |= {"step": str(step), "images": str(images)}
    partial = path.with_name(f".partial-{path.name}")
    write_tensors(partial, tensors, header)
    os.replace(partial, path)
    flush_folder(path.parent)


def _open(path: Path) -> Snapshot:
    header = read_header(path)
    try:
        std = float(header["profile"].removeprefix("std"))
        return Snapshot(path, std, int(header["step"]), int(header["images"]))
    except (KeyError, ValueError):
        raise ValueError(f"{path} does not say which average it is; move it away") from None


def _halved(value: Tensor) -> Tensor:
    """In half precision where that can hold every value."""
    half = value.to(torch.float16) if value.is_floating_point() else value
    return half if bool(half.isfinite().all()) else value
