"""Arithmetic of a training on many GPUs: memory, communication and time of a step.

What the network does is counted (footprint.py); what the hardware does is said by the constants
here. Nothing is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from footprint import Footprint

from flowmatch.config import Config
from flowmatch.data import Latent


class Device(NamedTuple):
    """A GPU in a node of `local` of them, as its maker describes it."""

    title: str
    flops: float
    """Operations a second in dense bf16 products; TF32 does half as many."""
    memory: float
    hbm: float
    """Bytes a second from and to its memory."""
    nvlink: float
    """Bytes a second to the other GPUs of the node, in one direction."""
    network: float
    """Bytes a second to other nodes, in one direction: one port for each GPU."""
    local: int = 8


DEVICES = {
    # NVIDIA's data sheets: dense rates are half of those "with sparsity", NVLink half of the sum of
    # both directions; ports of 400 Gb/s (NDR) as in DGX H100 and H200, 200 Gb/s (HDR) in DGX A100
    "h100": Device("H100 SXM", 989e12, 80e9, 3.35e12, 450e9, 50e9),
    "h200": Device("H200 SXM", 989e12, 141e9, 4.8e12, 450e9, 50e9),
    "a100": Device("A100 SXM 80 GB", 312e12, 80e9, 2.04e12, 300e9, 25e9),
}
# Assumptions: what is reached of the peaks above. Measure your own, and change them here.
PRODUCTS = 0.7  # of large matrix products; clocks fall under load
MEMORY = 0.8  # of the memory's rate, by large element-wise kernels
LINKS = 0.8  # of NVLink and network, by large all-reduces
HOST_SECONDS = 6e-6  # the host needs for each kernel that it starts
STORAGE = 2e9  # bytes a second that one process writes to shared storage
RESERVED = 3e9  # bytes a GPU holds for CUDA, NCCL and gaps of the allocator
# Latency of a hop of an all-reduce by trees, inside a node and between nodes.
# Source: the cost model of NCCL 2.8 (src/graph/tuning.cc), protocol LL128.
HOP, NETWORK_HOP = 1.2e-6, 8.5e-6
# Bytes of gradients that PyTorch's DDP reduces at once: first and further buckets.
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
WORTH_IT = 1.5
"""Images a second are this many times as many with twice the GPUs, or it has stopped scaling."""


@dataclass(frozen=True)
class Plan:
    """A training on so many GPUs, each with a copy of everything (DDP).

    Args:
        config: the run's.
        network: what its network does.
        device: each of the GPUs.
        gpus: their number, which divides `train.batch`.
        compiled: at best, all between two products becomes one kernel, which reads what the one
            wrote and the backward pass will need, and writes what the other reads; else each
            kernel of eager PyTorch runs by itself.
    Raises:
        ValueError: it does not.
    """

    config: Config
    network: Footprint
    device: Device
    gpus: int
    compiled: bool = True

    def __post_init__(self) -> None:
        if self.config.train.batch % self.gpus:
            raise ValueError(
                f"train.batch={self.config.train.batch} cannot be dealt to {self.gpus} GPUs; give"
                " divisors of it to --gpus, or another train.batch"
            )

    # ---- memory: bytes of one GPU

    @property
    def share(self) -> int:
        """Images that a GPU computes in a step."""
        return self.config.train.batch // self.gpus

    @cached_property
    def parts(self) -> int:
        """The least `train.accumulate` with which a share fits into memory."""
        divisors = (n for n in range(1, self.share + 1) if self.share % n == 0)
        fitting = (n for n in divisors if self.memory(n) <= self.device.memory)
        return next(fitting, self.share)

    def states(self) -> dict[str, float]:
        """What a GPU holds from step to step, and the gradients."""
        one = 4.0 * self.network.parameters  # all of it is float32
        averages = self.config.train.profiles
        buckets = one if self.gpus > 1 else 0.0
        return {
            "weights": one,
            "gradients": one,
            "buckets of the all-reduce": buckets,
            "AdamW's moments": 2 * one,
            f"averages ({len(averages)})": len(averages) * one,
            "untrained weights, until the first checkpoint": one,
        }

    def activations(self, parts: int) -> float:
        """What the forward pass of a part keeps, 16-bit copies of the weights included."""
        return float(self.network.kept.at(self.share / parts))

    def memory(self, parts: int) -> float:
        """All of it."""
        return sum(self.states().values()) + self.activations(parts) + RESERVED

    def sharded_memory(self, parts: int) -> float:
        """The same with `train.sharding=fsdp`, where one weight or a few are whole at a time.

        The 16-bit copies of the weights are whole: autocast keeps them for the backward pass.
        """
        states = sum(v for k, v in self.states().items() if not k.startswith("buckets"))
        whole = 4 * max(self.network.sizes)
        return states / self.gpus + whole + self.activations(parts) + RESERVED

    # ---- communication: a step of one GPU

    @property
    def sent(self) -> float:
        """Bytes that a GPU sends: a ring sends each value P - 1 times to add, P - 1 to spread."""
        return ring_bytes(4.0 * self.network.parameters, self.gpus)

    @property
    def sent_sharded(self) -> float:
        """The same with `train.sharding=fsdp`, all of it in float32.

        Each part gathers the weights twice and adds up the gradients.
        """
        whole = self.network.parameters * 4.0 * 3 * self.parts
        return whole * (self.gpus - 1) / self.gpus

    @property
    def rate(self) -> float:
        """Bytes a second of that: each of a node's rings crosses to the next node by a port."""
        if self.gpus <= self.device.local:
            return LINKS * self.device.nvlink
        return LINKS * min(self.device.nvlink, self.device.local * self.device.network)

    @property
    def latency(self) -> float:
        """Seconds of an all-reduce of nothing: up and down a tree."""
        local = min(self.gpus, self.device.local)
        return 2 * ((local - 1) * HOP + math.log2(max(self.gpus / local, 1)) * NETWORK_HOP)

    @cached_property
    def reduce_seconds(self) -> list[float]:
        """Of the all-reduces of a step, the last one last."""
        if self.gpus == 1:
            return [0.0]
        sizes = buckets([4 * n for n in self.network.sizes])
        return [self.latency + ring_bytes(size, self.gpus) / self.rate for size in sizes]

    # ---- time: seconds of a step

    @cached_property
    def passes(self) -> tuple[float, float]:
        """Forward and backward of a part: kernels compute, move bytes, or wait for the host."""
        images, net = self.share / self.parts, self.network
        peak = self.device.flops / (2 if self.config.train.precision == "fp32" else 1)
        moves = net.traffic.at(images) / (MEMORY * self.device.hbm)
        kernels = np.maximum(net.flops.at(images) / (PRODUCTS * peak), moves)
        kept = float(net.kept.at(images)) / (MEMORY * self.device.hbm)

        def busy(which: slice) -> float:
            products, rest = net.products[which], kernels[which][~net.products[which]].sum()
            if self.compiled:
                rest = min(rest, moves[which][products].sum() + kept)
            return float(kernels[which][products].sum() + rest)

        forward, backward = busy(slice(net.backward)), busy(slice(net.backward, None))
        started = 2 * net.products.sum() if self.compiled else len(kernels)
        stretch = max(started * HOST_SECONDS / (forward + backward), 1.0)
        return forward * stretch, backward * stretch

    @property
    def compute(self) -> float:
        """Forward and backward of all parts."""
        return self.parts * sum(self.passes)

    @property
    def exposed(self) -> float:
        """Communication that the last backward pass does not hide; the last bucket never is."""
        return max(sum(self.reduce_seconds) - self.passes[1], self.reduce_seconds[-1])

    @property
    def update(self) -> float:
        """Clipping, AdamW and averages: as much for any share.

        In float32 values of each parameter read and written: 3 to clip, 7 by AdamW, 3 by each
        average, and 4 to copy gradients into their buckets and back.
        """
        values = 3 + 7 + 3 * len(self.config.train.profiles) + (4 if self.gpus > 1 else 0)
        return 4 * values * self.network.parameters / (MEMORY * self.device.hbm)

    @property
    def step(self) -> float:
        """One optimizer step."""
        return self.compute + self.exposed + self.update

    @property
    def rate_of_images(self) -> float:
        """Images a second."""
        return self.config.train.batch / self.step

    @property
    def efficiency(self) -> float:
        """Images a second of a GPU, over those of one that works alone on the same batches."""
        return replace(self, gpus=1).step / (self.gpus * self.step)

    @property
    def utilisation(self) -> float:
        """Share of the peak that goes into the network's own operations."""
        done = float(self.network.flops.per_image.sum()) * self.rate_of_images
        return done / (self.gpus * self.device.flops)

    # ---- the whole run

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint."""
        return 4.0 * self.network.parameters * (3 + len(self.config.train.profiles))

    @property
    def saving(self) -> float:
        """Seconds of all checkpoints and snapshots, for which every GPU waits."""
        train = self.config.train
        saves = math.ceil(train.total_steps / train.save_every) if train.save_every else 1
        written = saves * self.checkpoint
        if train.post_hoc is not None:
            size = 2.0 if train.post_hoc.precision == "fp16" else 4.0
            count = train.snapshots_after(0) * len(train.post_hoc.stds)
            written += count * size * self.network.parameters
        return written / STORAGE

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.config.train.total_steps * self.step + self.saving

    def read(self, shape: Sequence[int]) -> float:
        """Bytes of data a second that all GPUs together take, as they lie on the disk.

        Latents are a mean and a standard deviation in 16 bits; anything else is counted as bytes.
        """
        size = 4 if isinstance(self.config.data, Latent) else 1
        return size * math.prod(shape) * self.rate_of_images


def ring_bytes(size: float, gpus: int) -> float:
    """Bytes that each of a ring sends to all-reduce so many: 2 (P - 1) / P of them.

    Source: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations".
    """
    return 2 * (gpus - 1) / gpus * size


def buckets(sizes: Sequence[int]) -> list[int]:
    """Bytes of the buckets of DDP: gradients from the last to the first, until a bucket is full."""
    found, limit = [0], FIRST_BUCKET
    for size in reversed(sizes):
        if found[-1] >= limit:
            limit = BUCKET
            found.append(0)
        found[-1] += size
    return found


def limit_of(plan: Plan) -> Plan:
    """The most GPUs, by doubling, with which twice as many still were worth it."""
    while plan.config.train.batch % (2 * plan.gpus) == 0:
        twice = replace(plan, gpus=2 * plan.gpus)
        if twice.rate_of_images < WORTH_IT * plan.rate_of_images:
            break
        plan = twice
    return plan
