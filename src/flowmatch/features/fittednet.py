"""A feature net that was fitted to the user's own data, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowmatch.component import Component
from flowmatch.data.dataset import digest
from flowmatch.features.convnet import Architecture, ConvNet
from flowmatch.features.net import Extracted, FeatureKind, FeatureNet
from flowmatch.tensors import from_uint8

RECIPE = 3
"""Version of the architecture and of the fitting. A change of either makes other features."""

Task = Literal["labels", "rotations"]
_KEY = "flowmatch_features"  # of the file's metadata


@dataclass(frozen=True, kw_only=True)
class Facts(Component):
    """What is known of a fitted net besides its weights.

    Args:
        recipe: version of the recipe that it was fitted by.
        architecture: the numbers that the network is built from.
        task: what it was fitted to tell apart.
        accuracy: share of images that it classifies rightly, among images it was not fitted to.
        accuracy_on: how many images that share is taken over.
        data: identity of the data that it was fitted to.
        seed: key of the weights at the start and of the order of the images.
    """

    recipe: int
    architecture: Architecture
    task: Task
    accuracy: float
    accuracy_on: int
    data: str
    seed: int


class FittedNet(FeatureNet):
    """A small classifier of the user's own data, whose averaged features are the vectors.

    The logits are those of the data's labels; a net fitted to rotations has none. Made by `fit`.

    Args:
        network: the fitted network.
        facts: what is known of it.
    """

    kind: FeatureKind = "data"

    def __init__(self, network: ConvNet, facts: Facts) -> None:
        self.network = network.eval().requires_grad_(False)
        self.facts = facts
        self.dims = network.dims
        self.num_classes = facts.architecture.outputs if facts.task == "labels" else None
        named = sorted(network.state_dict().items())
        self.hash = digest(_to_json(facts), *(part for item in named for part in item))

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        architecture = self.facts.architecture
        return {
            "kind": self.kind,
            "hash": self.hash,
            "dims": self.dims,
            "recipe": self.facts.recipe,
            "task": self.facts.task,
            "classes": architecture.outputs,
            "accuracy": self.facts.accuracy,
            "accuracy_on": self.facts.accuracy_on,
            "data": self.facts.data,
            "shape": list(architecture.shape),
            "seed": self.facts.seed,
        }

    def _extract(self, images: Tensor) -> Extracted:
        expected = self.facts.architecture.shape
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                "these features were fitted to images of {}x{}x{} (channels, height, width), but"
                " got {}x{}x{}; fit them to images like these".format(*expected, *images.shape[1:])
            )
        means = self.network.means(from_uint8(images.to(self.network.scale.device)))
        logits = None if self.num_classes is None else self.network.logits(means)
        return Extracted(self.network.vectors(means), logits)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The weights on the CPU and one text of metadata, to be put into a safetensors file."""
        weights = {k: v.cpu().contiguous() for k, v in self.network.state_dict().items()}
        return weights, {_KEY: _to_json(self.facts)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Self:
        """The net that `to_tensors` took apart; other metadata beside its own is passed over.

        Raises:
            ValueError: metadata or weights of something else, or of another recipe.
        """
        if _KEY not in metadata:
            raise ValueError("no fitted features in it: the metadata have no entry " + _KEY)
        try:
            facts = _FACTS.validate_json(metadata[_KEY])
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise ValueError(
                f"the metadata of the fitted features are damaged ({first['msg']})"
            ) from None
        if facts.recipe != RECIPE:
            raise ValueError(
                f"the features were fitted by recipe {facts.recipe}, but this version of flowmatch"
                f" knows recipe {RECIPE}; fit them again"
            )
        with torch.device("meta"):
            network = ConvNet(facts.architecture)
        expected = {name: (v.shape, v.dtype) for name, v in network.state_dict().items()}
        if expected != {name: (v.shape, v.dtype) for name, v in tensors.items()}:
            raise ValueError("the weights do not fit the network of the metadata")
        network.load_state_dict(dict(tensors), assign=True)
        return cls(network, facts)

    def save(self, path: Path) -> None:
        """Write the net into one safetensors file."""
        tensors, metadata = self.to_tensors()
        save_file(tensors, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; the features are exactly the same.

        Raises:
            ValueError: no such file, or one that is damaged or of something else.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return cls.from_tensors(tensors, file.metadata() or {})
        except OSError as error:
            raise ValueError(f"cannot read {path} ({error.strerror or error})") from None
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} holds no features that can be used: {error}") from None


_FACTS = pydantic.TypeAdapter(Facts)


def _to_json(facts: Facts) -> str:
    return json.dumps(asdict(facts), sort_keys=True)
