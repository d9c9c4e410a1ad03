"""What `--reference` may be: a split, a data config, images, points, or finished statistics."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flowmatch.config import Config, parse_data, read_yaml
from flowmatch.data import Batch, DataConfig, Dataset, Split, decoded_data
from flowmatch.evaluation.statistics import Statistics
from flowmatch.evaluation.stored import load_stored


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Args:
        name: what to call it.
        dataset: its images or points; None if only statistics are at hand.
        statistics: finished statistics; None if they are to be computed from the data set.
        train, held_out: what a feature net may be fitted to, and tested on.
    """

    name: str
    dataset: Dataset | None
    statistics: Statistics | None = None
    train: Dataset | None = None
    held_out: Dataset | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        if self.statistics is not None:
            return self.statistics.shape
        assert self.dataset is not None
        return tuple(self.dataset.shape)


OWN_SPLITS = (None, "train", "test")
"""The specs that name a split of the run's own data."""


def find_reference(spec: str | None, config: Config | None) -> Reference:
    """The reference that `--reference SPEC` names.

    Args:
        spec: "train" or "test" of the run's own data (None: train); a YAML file with a config or
            its `data` node, with ":test" behind it for the test split; a `.parquet` file, a folder
            of images, an `.npz`; or a statistics file (`.safetensors`).
        config: the run's config; None when stored samples are evaluated.
    Raises:
        ValueError: it cannot be found or read.
    """
    if spec in OWN_SPLITS:
        if config is None:
            raise ValueError(
                "stored samples need something to be compared with: --reference with a data"
                " config, a folder of images, a parquet file or a statistics file"
            )
        return _of_data(config.data, "test" if spec == "test" else "train")
    assert spec is not None
    path, _, split = spec.rpartition(":")
    if split not in ("train", "test"):
        path, split = spec, "train"
    if path.endswith((".yaml", ".yml")):
        node = read_yaml(path)
        data = parse_data(node.get("data", node), where=path)
        return _of_data(data, "test" if split == "test" else "train")
    if path.endswith(".safetensors"):
        statistics = Statistics.load(Path(path))
        return Reference(statistics.name, None, statistics)
    if not Path(path).exists():
        raise ValueError(
            f"--reference {spec} is neither train, test, a data config (.yaml), a folder, .npz,"
            " .parquet nor a statistics file (.safetensors) that exists"
        )
    dataset = load_stored(Path(path)).dataset()
    return Reference(path, dataset, train=dataset)


def _of_data(data: DataConfig, split: Split) -> Reference:
    data = decoded_data(data)
    train, held_out = data.build("train"), held_out_of(data)
    if split == "test" and held_out is None:
        raise ValueError(f"the data set {data.kind} has no test split; use --reference train")
    dataset = train if split == "train" else held_out
    return Reference(f"{data.kind} {split}", dataset, train=train, held_out=held_out)


def held_out_of(data: DataConfig) -> Dataset | None:
    """The test split of a data config, or None if it has none."""
    try:
        return data.build("test")
    except (ValueError, OSError) as error:  # it may have none, or be damaged: the user knows which
        warnings.warn(f"there are no held-out data to compare with: {error}", stacklevel=2)
        return None


def fit_resolution(reference: Reference, shape: tuple[int, ...], *, resize: bool) -> Reference:
    """The reference at the samples' resolution: as it is, resized on demand, or refused.

    Raises:
        ValueError: other channels, or another resolution without `resize`.
    """
    theirs = reference.shape
    if theirs == shape:
        return reference
    ours = "x".join(map(str, shape))
    have = "x".join(map(str, theirs))
    if len(theirs) != len(shape) or len(shape) != 3 or theirs[0] != shape[0]:
        raise ValueError(
            f"the samples are {ours}, the reference {reference.name} is {have}: they cannot be"
            " compared; give a reference of the same kind and channels"
        )
    explain = (
        f"the samples are {ours}, the reference {reference.name} is {have}. Resizing changes what"
        " is measured: enlarging one side makes it smoother than the other, shrinking makes it"
        " sharper, and distances move by more than most models differ"
    )
    if not resize:
        raise ValueError(
            f"{explain}. Make both the same size at their source, or pass --resize-reference to"
            f" bring the reference to {shape[1]}x{shape[2]} (antialiased bicubic; the protocol will"
            " say so)"
        )
    if reference.dataset is None:
        raise ValueError(f"{explain}. Statistics cannot be resized; give the images instead")
    changed = _Resized(reference.dataset, shape[1:])
    train = _Resized(reference.train, shape[1:]) if reference.train is not None else None
    held = _Resized(reference.held_out, shape[1:]) if reference.held_out is not None else None
    name = f"{reference.name}, resized from {have} (antialiased bicubic)"
    return Reference(name, changed, train=train, held_out=held)


class _Resized(Dataset):
    """Images of another data set at another size.

    Args:
        dataset: the images.
        size: height and width to bring them to.
    """

    def __init__(self, dataset: Dataset, size: tuple[int, ...]) -> None:
        self.dataset, self.size = dataset, size
        self.shape = (dataset.shape[0], *size)
        self.num_classes, self.random_access = dataset.num_classes, dataset.random_access

    def __len__(self) -> int:
        return len(self.dataset)

    def raw(self, indices: Tensor, uniforms: Tensor | None) -> Batch:
        batch = self.dataset.raw(indices, uniforms)
        assert batch.x1.dtype == torch.uint8
        resized = F.interpolate(batch.x1, self.size, mode="bicubic", antialias=True)
        return Batch(resized, batch.cond)

    def identity(self) -> str:
        return f"{self.dataset.identity()}-{'x'.join(map(str, self.size))}"
