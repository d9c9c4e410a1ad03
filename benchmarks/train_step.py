"""Our training step against other projects' loops, on the same network and the same batch.

    python benchmarks/train_step.py [--channels 32] [--size 28] [--batch 64] [--rounds 30]
    python benchmarks/train_step.py --channels 128 --multipliers 1 2 2 2 --blocks 2 --attention 16 \
        --no-scale-shift --image-channels 3 --size 32 --batch 128     # the 36M U-Net of CIFAR-10

They take turns: our trainer's step; the loop as it is usually written (NCHW, fp32, AdamW with its
defaults, loss.item() and an EMA over the parameters one by one, each step); torchcfm's and
rectified-flow-pytorch's as their documentation has them, where they are installed
(training_peers.py); and the network alone, forward and backward on a fixed batch. On a CPU the
share of our step outside the network is also clocked inside the step itself, which other work on
the machine disturbs least. Peak memory is that of a process that does a few steps of one loop.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import alternate, ratio, record, show
from torch import nn
from training_peers import Loop, peers

from flowmatch.data import MemoryImages
from flowmatch.flow import Flow
from flowmatch.losses import FlowMatching
from flowmatch.networks import UNetConfig
from flowmatch.solvers import Euler
from flowmatch.training.distributed import start_processes
from flowmatch.training.settings import TrainConfig
from flowmatch.training.trainer import Trainer

MIB = 2**20


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


class Ours:
    """Our trainer; a GPU gets its defaults, bf16 and a compiled network."""

    def __init__(
        self, network: nn.Module, images: torch.Tensor, batch: int, device: str, folder: Path
    ) -> None:
        self.trainer = Trainer(
            Flow(network, shape=tuple(images.shape[1:])),
            FlowMatching(),
            MemoryImages(images),
            TrainConfig(steps=10**6, batch=batch, precision="fp32" if device == "cpu" else "bf16"),
            run_dir=folder / "ours",
            solver=Euler(),
            config_yaml="",
            accelerator=start_processes("fp32" if device == "cpu" else "bf16"),
        )

    def step(self) -> None:
        self.trainer.train_step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 2])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--attention", type=int, nargs="*", default=[7])
    parser.add_argument("--scale-shift", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--image-channels", type=int, default=1)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--alone", metavar="NAME", help="do three steps of one loop, and no more")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step.jsonl"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loops, missing = loops_of(args, Path(folder))
        if args.alone:
            for _ in range(3):
                loops[args.alone].step()
            print(peak_mib())
            return
        measure(loops, args)
    if missing:
        print(f"not installed: {', '.join(missing)} (training_peers.py says how)")


def loops_of(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Loop], list[str]]:
    """The loops that can be run, or the one that is asked for, and those that cannot."""
    shape = (args.image_channels, args.size, args.size)
    network = network_of(args)
    images = torch.randint(0, 256, (4096, *shape), dtype=torch.uint8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    makers: dict[str, Callable[[nn.Module, torch.Tensor, int, str], Loop]] = {
        "ours": lambda *words: Ours(*words, folder),
        **peers(folder),
        "network": lambda network, images, batch, device: NetworkAlone(
            network, shape, batch, device
        ),
    }
    loops, missing = {}, []
    for name, make in makers.items():
        if args.alone in (None, name):
            try:
                loops[name] = make(copy.deepcopy(network), images, args.batch, device)
            except ImportError:
                missing.append(name)
    return loops, missing


def network_of(args: argparse.Namespace) -> nn.Module:
    return UNetConfig(
        channels=args.channels,
        multipliers=tuple(args.multipliers),
        blocks=args.blocks,
        attention_resolutions=tuple(args.attention),
        scale_shift=args.scale_shift,
    ).build((args.image_channels, args.size, args.size))


def measure(loops: dict[str, Loop], args: argparse.Namespace) -> None:
    """Time the loops in turns, then what each keeps in memory, and record both."""
    seconds = alternate({name: loop.step for name, loop in loops.items()}, rounds=args.rounds)
    ours = loops["ours"]
    assert isinstance(ours, Ours)
    on_cpu = ours.trainer.accelerator.device.type == "cpu"
    outside = share_outside_network(ours.trainer, args.rounds) if on_cpu else None
    parameters = sum(p.numel() for p in ours.trainer.flow.parameters())
    shape = (args.image_channels, args.size, args.size)
    print(f"{parameters:,} parameters, batch {args.batch} of {shape}, {args.rounds} rounds")
    against = {name: ratio(seconds["ours"], seconds[name]) for name in loops if name != "ours"}
    for name, found in against.items():
        show(f"our step / {name}'s", found)
    if outside is not None:
        print(f"share of our step outside the network: {outside:.2%} (median)")
    rates = {name: args.batch / statistics.median(times) for name, times in seconds.items()}
    print("images/s: " + ", ".join(f"{name} {rate:.4g}" for name, rate in rates.items()))
    memory = {name: peak_memory(name) for name in loops if args.memory}
    print("peak MiB: " + ", ".join(f"{name} {mib:,.0f}" for name, mib in memory.items()))
    record(
        {
            "parameters": parameters,
            "shape": shape,
            "batch": args.batch,
            "ours_over": against,
            "share_outside_network": outside,
            "images_per_second": rates,
            "peak_mib": memory,
        },
        args.out,
    )


def peak_memory(name: str) -> float:
    """MiB of a process of its own that does three steps of one loop: of the GPU, else all of it."""
    words = [sys.executable, *sys.argv, "--alone", name]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def peak_mib() -> float:
    """The most that this process has had: of the GPU, else of its own memory (on Linux)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    status = Path("/proc/self/status").read_text()
    (kib,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(kib) / 1024


if __name__ == "__main__":
    main()
