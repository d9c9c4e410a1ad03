"""One process, two, four: how much faster a training is, what the processes send each other, and
what each of them keeps.

    python benchmarks/scaling.py [--processes 1 2 4] [--channels 32] [--size 28] [--batch 64]

Each count of processes trains the same network on the same global batches for some steps, with one
thread each, by torchrun on this machine; several processes both with all states in each (DDP) and
with `train.sharding=fsdp`. The efficiency is against one process, up to the number of cores.

Bytes are those that the loopback device carried in a step (Linux), beside those that rings of P
processes carry: with DDP 2 (P - 1) times the gradients, which are added and spread. Sharded at most
4 (P - 1) times: weights are gathered twice, but for those that backward needs first, and gloo adds
up and scatters gradients as it adds up and spreads them; NCCL would need half of that.
Memory is that of the tensors that the first process keeps from step to step, beside its share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import record

from flowmatch.data import MemoryImages
from flowmatch.flow import Flow
from flowmatch.losses import FlowMatching
from flowmatch.networks import UNetConfig
from flowmatch.solvers import Euler
from flowmatch.training.distributed import start_processes
from flowmatch.training.settings import TrainConfig
from flowmatch.training.sharding import local
from flowmatch.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each start")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each count")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scaling.jsonl")
    parser.add_argument("--sharding", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        work(args)
        return
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for _ in range(args.rounds):  # in turns, as the machine's speed drifts
        for processes in args.processes:
            for sharding in ("none", "fsdp")[: 1 + (processes > 1)]:
                one = start(processes, sharding, args)
                found.setdefault((processes, sharding), []).append(one)
    rows = [row_of(processes, sharding, runs) for (processes, sharding), runs in found.items()]
    alone = rows[0]["seconds"] * rows[0]["processes"]
    for row in rows:
        useful = min(row["processes"], os.cpu_count() or 1)
        row["efficiency"] = alone / (row["seconds"] * useful)
        name = f"{row['processes']} processes, {row['sharding']}"
        print(
            f"{name}: {args.batch / row['seconds']:,.1f} images/s, efficiency"
            f" {row['efficiency']:.1%}; {row['bytes'] / 2**20:.2f} MiB sent a step, by arithmetic"
            f" {row['ring_bytes'] / 2**20:.2f}; {sum(row['kept'].values()) / 2**20:.2f} MiB kept,"
            f" by arithmetic {row['share_bytes'] / 2**20:.2f}"
        )
    settings = {"batch": args.batch, "size": args.size, "channels": args.channels}
    record({**settings, "cores": os.cpu_count(), "rows": rows}, args.out)


def start(processes: int, sharding: str, args: argparse.Namespace) -> dict[str, Any]:
    """Let so many processes train, and read what the first of them found."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        words = [
            f"--{name}={getattr(args, name)}" for name in ("channels", "size", "batch", "steps")
        ]
        words += [f"--sharding={sharding}", f"--worker={file}"]
        subprocess.run(
            [sys.executable, *launcher, __file__, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def work(args: argparse.Namespace) -> None:
    """What each process does: train, and the first one writes down what it saw."""
    accelerator = start_processes()
    shape = (1, args.size, args.size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4096, *shape), dtype=torch.uint8, generator=generator)
    torch.manual_seed(0)
    network = UNetConfig(
        channels=args.channels, multipliers=(1, 2, 2), blocks=1, attention_resolutions=()
    ).build(shape)
    gradients = sum(4 * p.numel() for p in network.parameters())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            Flow(network, shape=shape),
            FlowMatching(),
            MemoryImages(images),
            TrainConfig(steps=10**6, batch=args.batch, sharding=args.sharding),
            run_dir=Path(folder),
            solver=Euler(),
            config_yaml="",
            accelerator=accelerator,
        )
        for _ in range(3):
            trainer.train_step()
        accelerator.wait_for_everyone()
        seconds, before = [], carried()
        for _ in range(args.steps):
            began = time.perf_counter()
            trainer.train_step()
            seconds.append(time.perf_counter() - began)
        accelerator.wait_for_everyone()
        sent = carried() - before
    if accelerator.is_main_process:
        found = {
            "seconds": statistics.median(seconds),
            "bytes": sent / args.steps,
            "gradient_bytes": gradients,
            "kept": kept(trainer),
        }
        args.worker.write_text(json.dumps(found))


def kept(trainer: Trainer) -> dict[str, int]:
    """Bytes of the tensors that this process keeps from step to step."""
    parameters = list(trainer.objective.parameters())
    moments = [v for state in trainer.optimizer.state.values() for v in state.values()]
    averages = [p for net in trainer.averages.networks.values() for p in net.parameters()]
    kinds: dict[str, list[Any]] = {
        "parameters": parameters,
        "gradients": [p.grad for p in parameters if p.grad is not None],
        "moments": [v for v in moments if v.ndim],
        "averages": averages,
    }
    return {kind: sum(local(t).nbytes for t in tensors) for kind, tensors in kinds.items()}


def row_of(processes: int, sharding: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the starts with so many processes."""
    gradients = runs[0]["gradient_bytes"]
    rounds, parts = (4, processes) if sharding == "fsdp" else (2, 1)
    return {
        "processes": processes,
        "sharding": sharding,
        "kept": runs[0]["kept"],
        "share_bytes": 5 * gradients / parts,  # weights, gradients, two moments, one average
        "seconds": statistics.median(run["seconds"] for run in runs),
        "bytes": statistics.median(run["bytes"] for run in runs),
        "gradient_bytes": gradients,
        "ring_bytes": rounds * (processes - 1) * gradients,
    }


def carried() -> int:
    """Bytes that the loopback device has carried; 0 where there is no such count."""
    return int(LOOPBACK.read_text()) if LOOPBACK.exists() else 0


if __name__ == "__main__":
    main()
