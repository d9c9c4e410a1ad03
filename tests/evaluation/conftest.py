"""A feature net that needs no fitting, and one process to run on."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from flowmatch.features import Extracted, FeatureNet
from flowmatch.tensors import from_uint8


class Projection(FeatureNet):
    """A fixed random projection; its logits are the first three features."""

    kind = "data"

    def __init__(self, shape, dims=6, name="projection00"):
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(torch.Size(shape).numel(), dims, generator=generator)
        self.dims, self.num_classes, self.hash = dims, 3, name

    def to(self, device):
        return self

    def describe(self):
        return {"kind": "data", "hash": self.hash, "dims": self.dims}

    def _extract(self, images):
        vectors = from_uint8(images).flatten(1) @ self.weight
        return Extracted(vectors, vectors[:, :3])


@pytest.fixture
def projection():
    """The class of that net."""
    return Projection


@pytest.fixture
def accelerator():
    """This process alone, on the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)
