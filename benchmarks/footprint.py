"""What forward and backward of a network are made of, counted without computing anything.

The network runs on fake tensors, which have shapes and no values, so that any size and batch costs
seconds and no memory. Counted are the kernels that PyTorch would start one by one: their
floating-point operations, the bytes that they read and write, and what they keep for the backward
pass. They are those of the CPU; on a GPU a few of them (norms) are fused.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from flowmatch.networks import NetworkConfig
from flowmatch.training.settings import Precision

FREE = ("aten._unsafe_view.default",)
"""What torch does not call a view although it moves nothing."""


@dataclass(frozen=True)
class Line:
    """A number that grows evenly with the images of a batch, or an array of such numbers."""

    fixed: Any
    per_image: Any

    def at(self, images: float) -> Any:
        """Its value for so many images."""
        return self.fixed + self.per_image * images


@dataclass(frozen=True)
class Footprint:
    """Forward and backward of a network by the images that are computed at once.

    Args:
        sizes: number of values of each parameter, in the network's order.
        kept: bytes that the forward pass keeps for the backward one, without the parameters.
        flops, traffic: floating-point operations of each kernel, and the bytes it reads and writes.
        backward: number of the first kernel of the backward pass.
    """

    sizes: tuple[int, ...]
    kept: Line
    flops: Line
    traffic: Line
    backward: int

    @property
    def parameters(self) -> int:
        """Values of all parameters."""
        return sum(self.sizes)

    @property
    def products(self) -> Any:
        """Which kernels are products, convolutions or attention: those that no compiler fuses."""
        return self.flops.at(1) > 0


def measure(
    network: NetworkConfig, shape: tuple[int, ...], *, precision: Precision = "bf16"
) -> Footprint:
    """Count what a network does with a batch.

    All counts are lines in the number of images, which two batches decide; one of a single image
    will not do, as torch leaves out what adds up a single row.

    Args:
        network: its config.
        shape: of one sample.
        precision: of the training; under "bf16" and "fp16" matrix products are in 16 bits.
    """
    small, large = 2, 4
    with FakeTensorMode():
        built = network.build(shape).train()
        rows = {n: _count(built, n, shape, mixed=precision != "fp32") for n in (small, large)}
    sizes = tuple(p.numel() for p in built.parameters())

    def line(name: str) -> Line:
        few, many = (np.asarray(getattr(rows[n], name), dtype=float) for n in (small, large))
        slope = (many - few) / (large - small)
        return Line(few - slope * small, slope)

    return Footprint(sizes, line("kept"), line("flops"), line("traffic"), rows[small].backward)


class Kernels(TorchDispatchMode):
    """Counts what is computed inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: list[int] = []
        self.traffic: list[int] = []
        self.kept = 0
        self.backward = 0

    def __torch_dispatch__(
        self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = kernel(*args, **(kwargs or {}))
        if kernel.namespace == "prim" or kernel.is_view or str(kernel) in FREE:
            return out
        tensors = [v for v in tree_leaves((args, kwargs, out)) if isinstance(v, Tensor)]
        self.traffic.append(sum(_bytes(v) for v in tensors))
        self.flops.append(_flops(kernel, args, kwargs or {}, out))
        return out


def kept_bytes(network: nn.Module, x: Tensor, *, mixed: bool) -> tuple[Tensor, int]:
    """The mean square of a network's output, and the bytes that are kept for its gradient."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Any] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return value

    autocast = torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), autocast:
        loss = network(x, torch.full((len(x),), 0.5)).float().square().mean()
    return loss, sum(storage.nbytes() for storage in kept.values())


def _count(network: nn.Module, images: int, shape: tuple[int, ...], *, mixed: bool) -> Kernels:
    x = torch.zeros(images, *shape)
    network.zero_grad()
    with Kernels() as counted:
        loss, counted.kept = kept_bytes(network, x, mixed=mixed)
        counted.backward = len(counted.flops)
        loss.backward()
    return counted


def _flops(kernel: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Operations of a kernel, if it is a product, a convolution or attention."""
    name = kernel.overloadpacket.__name__
    if name == "_scaled_dot_product_flash_attention_for_cpu":  # torch counts those of GPUs alone
        return int(sdpa_flop_count(*(v.shape for v in args[:3])))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return int(sdpa_backward_flop_count(*(v.shape for v in args[:4])))
    count = flop_registry.get(kernel.overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count else 0


def _bytes(value: Tensor) -> int:
    """What reading a tensor moves: less than its values where they are one value repeated."""
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
