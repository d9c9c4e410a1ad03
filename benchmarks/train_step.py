"""Our training step against the usual eager loop, on the same network and the same batch.

    python benchmarks/train_step.py [--channels 32] [--size 28] [--batch 64] [--rounds 30]

Three things take turns: our trainer's step; the loop as it is usually written (NCHW, AdamW with its
defaults, loss.item() and an EMA over the parameters one by one, each step); and the network alone,
forward and backward on a fixed batch. On a CPU the share of our step outside the network is also
clocked inside the step itself, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import alternate, ratio, record, show
from torch import nn

from flowmatch.data import MemoryImages
from flowmatch.flow import Flow
from flowmatch.losses import FlowMatching
from flowmatch.networks import UNetConfig
from flowmatch.solvers import Euler
from flowmatch.training.distributed import start_processes
from flowmatch.training.settings import TrainConfig
from flowmatch.training.trainer import Trainer


class PlainLoop:
    """Flow matching as most repositories write it."""

    def __init__(self, network: nn.Module, images: torch.Tensor, batch: int, device: str) -> None:
        self.network = network.to(device)
        self.ema = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-4)
        dataset = torch.utils.data.TensorDataset(images)
        self.loader = torch.utils.data.DataLoader(dataset, batch, shuffle=True, drop_last=True)
        self.batches = iter(self.loader)
        self.device = device

    def step(self) -> None:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        x1 = batch[0].to(self.device).float() / 127.5 - 1
        x0 = torch.randn_like(x1)
        t = torch.rand(len(x1), device=x1.device)
        s = t[:, None, None, None]
        loss = F.mse_loss(self.network(s * x1 + (1 - s) * x0, t), x1 - x0)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, live in zip(self.ema.parameters(), self.network.parameters(), strict=True):
                average.mul_(0.9999).add_(live, alpha=0.0001)
        loss.item()


class Clock:
    """Seconds spent in a function, summed from call to call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = self.function(*args, **options)
        self.seconds += time.perf_counter() - began
        return result


def share_outside_network(trainer: Trainer, steps: int) -> float:
    """The median share of a step that is neither the network's forward nor the backward pass."""
    forward = trainer.flow.network.forward = Clock(trainer.flow.network.forward)
    backward = trainer.accelerator.backward = Clock(trainer.accelerator.backward)
    shares = []
    for _ in range(steps):
        forward.seconds = backward.seconds = 0.0
        began = time.perf_counter()
        trainer.train_step()
        whole = time.perf_counter() - began
        shares.append(1 - (forward.seconds + backward.seconds) / whole)
    return statistics.median(shares)


class NetworkAlone:
    """Forward and backward on one batch that is already there."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], batch: int, device: str) -> None:
        self.network = network.to(device)
        self.x = torch.randn(batch, *shape, device=device)
        self.t = torch.rand(batch, device=device)

    def step(self) -> None:
        self.network.zero_grad(set_to_none=False)
        self.network(self.x, self.t).square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 2])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--attention", type=int, nargs="*", default=[7])
    parser.add_argument("--image-channels", type=int, default=1)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step.jsonl"))
    args = parser.parse_args()

    shape = (args.image_channels, args.size, args.size)
    config = UNetConfig(
        channels=args.channels,
        multipliers=tuple(args.multipliers),
        blocks=args.blocks,
        attention_resolutions=tuple(args.attention),
        scale_shift=True,
    )
    images = torch.randint(0, 256, (4096, *shape), dtype=torch.uint8)
    accelerator = start_processes()
    device = accelerator.device.type
    network = config.build(shape)
    parameters = sum(p.numel() for p in network.parameters())
    with tempfile.TemporaryDirectory() as folder:
        ours = Trainer(
            Flow(copy.deepcopy(network), shape=shape),
            FlowMatching(),
            MemoryImages(images),
            TrainConfig(steps=10**6, batch=args.batch),
            run_dir=Path(folder),
            solver=Euler(),
            config_yaml="",
            accelerator=accelerator,
        )
        plain = PlainLoop(copy.deepcopy(network), images, args.batch, device)
        alone = NetworkAlone(copy.deepcopy(network), shape, args.batch, device)
        seconds = alternate(
            {"ours": ours.train_step, "plain": plain.step, "network": alone.step},
            rounds=args.rounds,
        )
        outside = share_outside_network(ours, args.rounds) if device == "cpu" else None
    print(f"{parameters:,} parameters, batch {args.batch} of {shape}, {args.rounds} rounds")
    against_plain = ratio(seconds["ours"], seconds["plain"])
    against_network = ratio(seconds["ours"], seconds["network"])
    show("our step / the plain loop's", against_plain)
    show("our step / the network alone", against_network)
    if outside is not None:
        print(f"share of our step outside the network: {outside:.2%} (median)")
    best = {name: args.batch / min(times) for name, times in seconds.items()}
    print("images/s at best: " + ", ".join(f"{k} {v:.0f}" for k, v in best.items()))
    record(
        {
            "parameters": parameters,
            "shape": shape,
            "batch": args.batch,
            "ours_over_plain": against_plain,
            "ours_over_network": against_network,
            "share_outside_network": outside,
            "images_per_second": best,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
