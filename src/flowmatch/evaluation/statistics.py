"""Reference statistics: computed once from plain images, cached, shareable as one file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowmatch.data import Dataset
from flowmatch.evaluation.sharding import batches_of, evenly, gather_rows
from flowmatch.features import FeatureNet, FittedNet
from flowmatch.metrics import Moments
from flowmatch.tensors import to_uint8

if TYPE_CHECKING:
    from accelerate import Accelerator

KEPT_FEATURES = 50_000
"""Feature vectors kept for the metrics that need them (kernel, precision, coverage): of a larger
set evenly spaced ones. Mean and covariance are always over all images."""

_FORMAT = "flowmatch-reference-1"
_NET = "net."


@dataclass(frozen=True)
class Statistics:
    """What a reference set looks like to a feature net.

    Args:
        name: what to call the set, e.g. "digits train".
        identity: hash of the set's content.
        count: its images.
        shape: of one image, (C, H, W).
        features: what `FeatureNet.describe` says of the net.
        moments: mean and covariance over all images.
        vectors: feature vectors of at most `KEPT_FEATURES` images, [K, F].
        net: the feature net itself where it was fitted to the data, so that one file is enough.
    """

    name: str
    identity: str
    count: int
    shape: tuple[int, ...]
    features: dict[str, Any]
    moments: Moments
    vectors: Tensor
    net: FittedNet | None = None

    def describe(self) -> dict[str, Any]:
        """What a protocol says about the reference."""
        return {
            "name": self.name,
            "hash": self.identity,
            "count": self.count,
            "shape": list(self.shape),
            "images": "plain: no flips, no crops, none left out",
        }

    def save(self, path: Path) -> None:
        """Write one safetensors file with the protocol in its header, whole or not at all."""
        tensors = {
            "moments.mean": self.moments.mean,
            "moments.scatter": self.moments.scatter,
            "vectors": self.vectors,
        }
        header: dict[str, Any] = {
            "format": _FORMAT,
            **self.describe(),
            "features": self.features,
        }
        if self.net is not None:
            weights, header["net"] = self.net.to_tensors()
            tensors |= {_NET + name: w for name, w in weights.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        whole = {name: t.contiguous() for name, t in tensors.items()}
        try:
            save_file(whole, partial, {"flowmatch": json.dumps(header)})
        except SafetensorError as error:  # its way to say that the disk does not take it
            raise OSError(str(error)) from None
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, damaged, or of another kind.
        """
        if not path.is_file():
            raise ValueError(f"there is no reference file {path}")
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("flowmatch", "{}"))
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read, it may be cut short: {error}") from None
        if header.get("format") != _FORMAT:
            raise ValueError(
                f"{path} is no reference of this version; make one with `flowmatch reference`"
            )
        try:
            return cls._from(header, tensors)
        except KeyError as error:
            raise ValueError(f"the reference {path} lacks {error}; make it again") from None

    @classmethod
    def _from(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> Statistics:
        if not all(t.isfinite().all() for t in tensors.values()):
            raise ValueError(f"the reference {header['name']} holds NaN; make it again")
        weights = {k[len(_NET) :]: t for k, t in tensors.items() if k.startswith(_NET)}
        return cls(
            name=header["name"],
            identity=header["hash"],
            count=header["count"],
            shape=tuple(header["shape"]),
            features=header["features"],
            moments=Moments(header["count"], tensors["moments.mean"], tensors["moments.scatter"]),
            vectors=tensors["vectors"],
            net=FittedNet.from_tensors(weights, header["net"]) if weights else None,
        )


def compute_statistics(
    dataset: Dataset,
    net: FeatureNet,
    accelerator: Accelerator,
    *,
    name: str,
    batch: int = 250,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Features of every plain image of a set, shared by the processes; the same result in all."""
    count = len(dataset)
    kept = evenly(count, KEPT_FEATURES)
    mine = batches_of(range(count), batch)[accelerator.process_index :: accelerator.num_processes]
    moments, vectors = Moments.zeros(net.dims), [torch.empty(0, net.dims)]
    places = [torch.empty(0, dtype=torch.int64)]
    for part in mine:
        index = torch.tensor(part)
        images = dataset.raw(index, None).x1
        images = images if images.dtype == torch.uint8 else to_uint8(images)
        found = net(images.to(accelerator.device)).vectors.cpu()
        moments.add(found)
        chosen = torch.isin(index, kept)
        vectors.append(found[chosen])
        places.append(torch.searchsorted(kept, index[chosen]))
        if progress is not None:
            progress(len(part))
    return Statistics(
        name=name,
        identity=dataset.identity(),
        count=count,
        shape=tuple(dataset.shape),
        features=net.describe(),
        moments=_add_up(moments, accelerator),
        vectors=gather_rows(torch.cat(vectors), torch.cat(places), accelerator),
        net=net if isinstance(net, FittedNet) else None,
    )


def _add_up(moments: Moments, accelerator: Accelerator) -> Moments:
    """The moments of all processes together."""
    from accelerate.utils import gather_object

    if accelerator.num_processes == 1:
        return moments
    whole, *rest = gather_object([moments])
    for part in rest:
        whole = whole + part
    assert isinstance(whole, Moments)
    return whole


def cached_statistics(
    dataset: Dataset,
    net: FeatureNet,
    accelerator: Accelerator,
    *,
    name: str,
    cache: Path,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """The statistics of a set, from the cache where they were computed before.

    The key is the content of the set and of the net, so a changed image never meets old numbers.
    """
    import warnings

    from accelerate.utils import gather_object

    path = cache / "references" / f"{dataset.identity()}-{net.kind}-{net.hash}.safetensors"
    found = _usable(path)
    held = [found is not None]
    everywhere = held if accelerator.num_processes == 1 else gather_object(held)
    if found is not None and all(everywhere):
        return replace(found, name=name)
    statistics = compute_statistics(dataset, net, accelerator, name=name, progress=progress)
    if accelerator.is_main_process:
        try:
            statistics.save(path)
        except OSError as error:
            warnings.warn(f"the reference cannot be cached in {cache}: {error}", stacklevel=2)
    accelerator.wait_for_everyone()
    return statistics


def _usable(path: Path) -> Statistics | None:
    """The cached statistics, or None; a damaged file is not trusted but made again."""
    try:
        return Statistics.load(path)
    except ValueError:
        return None
