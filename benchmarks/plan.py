"""What a training needs on how many GPUs: memory, communication, time, and where it stops scaling.

    python benchmarks/plan.py -c configs/imagenet256-latent.yaml --gpus 8 64 512 --shape 4 32 32
    python benchmarks/plan.py -c CONFIG --gpus 16 --device a100 --bandwidth 12.5 train.batch=512
    python benchmarks/plan.py --table

It is arithmetic, not a measurement: the network is counted (footprint.py), the hardware is told by
constants (arithmetic.py), and nothing is run. `--table` writes the tables of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arithmetic import DEVICES, RESERVED, Plan, limit_of
from footprint import measure
from measure import at_least_one, positive, run

from flowmatch.config import load_config
from flowmatch.markdown import table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/scaling.md"
RECIPE = ROOT / "configs/imagenet256-latent.yaml"
RECIPE_SHAPE = (4, 32, 32)
"""Of its latents, which else the autoencoder's settings say, and these are a download."""


def memory_table(plans: Sequence[Plan]) -> str:
    """Bytes of a GPU, a column for each plan."""
    rows = [["GB of a GPU", *(f"{p.gpus:,} GPUs" for p in plans)]]
    rows.append(["images of a GPU", *(f"{p.share:,}" for p in plans)])
    rows.append(["`train.accumulate`", *(f"{p.parts:,}" for p in plans)])
    for name in plans[0].states():
        rows.append([name, *(gigabytes(p.states()[name]) for p in plans)])
    rows.append(
        ["activations, 16-bit weights", *(gigabytes(p.activations(p.parts)) for p in plans)]
    )
    rows.append(["CUDA, NCCL, gaps", *(gigabytes(RESERVED) for _ in plans)])
    rows.append(["**in all**", *map(needed, plans)])
    rows.append(
        ["with `train.sharding=fsdp`", *(gigabytes(p.sharded_memory(p.parts)) for p in plans)]
    )
    return table(rows)


def time_table(plans: Sequence[Plan], shape: Sequence[int]) -> str:
    """A step and the run, a column for each plan: compiled at best, then eager."""
    images = plans[0].config.train.total_steps * plans[0].config.train.batch
    lines: dict[str, Callable[[Plan], str]] = {
        "forward and backward, ms": lambda p: f"{1e3 * p.compute:,.0f}",
        "clipping, AdamW, averages, ms": lambda p: f"{1e3 * p.update:,.0f}",
        "gradients sent by a GPU, GB": lambda p: f"{p.sent / 1e9:.2f}",
        "all-reduce, ms": lambda p: f"{1e3 * sum(p.reduce_seconds):,.0f}",
        "in buckets": lambda p: f"{len(p.reduce_seconds):,}",
        "of which latency, ms": lambda p: f"{1e3 * p.latency * len(p.reduce_seconds):,.1f}",
        "of which not hidden, ms": lambda p: f"{1e3 * p.exposed:,.1f}",
        "**step, ms**": lambda p: f"{1e3 * p.step:,.0f}",
        "**images a second**": lambda p: f"{p.rate_of_images:,.0f}",
        "efficiency, %": lambda p: f"{100 * p.efficiency:.0f}",
        "of the peak, %": lambda p: f"{100 * p.utilisation:.0f}",
        f"{images:,} images, hours": hours,
        "GPU hours": lambda p: f"{p.gpus * p.seconds / 3600:,.0f}",
        "checkpoint, GB": lambda p: gigabytes(p.checkpoint),
        "saving, % of the run": lambda p: f"{100 * p.saving / p.seconds:.1f}",
        "data read, MB/s": lambda p: f"{p.read(shape) / 1e6:,.0f}",
        "sent with fsdp, GB": lambda p: f"{p.sent_sharded / 1e9:.2f}",
    }
    head = ["", *(f"{p.gpus:,} GPUs" for p in plans)]
    return table([head, *([name, *(both(show, p) for p in plans)] for name, show in lines.items())])


def limit_table(plans: Sequence[tuple[str, Plan]], what: str) -> str:
    """Where each of several trainings stops scaling: compiled at best, then eager."""
    rows = [
        [what, "scales to, GPUs", "images of a GPU", "images a second", "efficiency, %", "hours"]
    ]
    show: list[Callable[[Plan], str]] = [
        lambda p: f"{p.gpus:,}",
        lambda p: f"{p.share:,}",
        lambda p: f"{p.rate_of_images:,.0f}",
        lambda p: f"{100 * p.efficiency:.0f}",
        hours,
    ]
    for name, plan in plans:
        rows.append([name, *(both(lambda p, f=f: f(limit_of(p)), plan) for f in show)])
    return table(rows)


def both(show: Callable[[Plan], str], plan: Plan) -> str:
    """What is shown of a plan if its network is compiled at best, and if it is not."""
    shown = [show(replace(plan, compiled=compiled)) for compiled in (True, False)]
    return " – ".join(dict.fromkeys(shown))


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f}"


def hours(plan: Plan) -> str:
    found = plan.seconds / 3600
    return f"{found:,.1f}" if found >= 1 else f"{found:.2f}"


def needed(plan: Plan) -> str:
    """The memory of a GPU, and whether it has so much."""
    fits = plan.memory(plan.parts) <= plan.device.memory
    return f"**{gigabytes(plan.memory(plan.parts))}**" + ("" if fits else ", too much")


def page_tables() -> dict[str, str]:
    """The tables of docs/scaling.md by the names of their marks."""
    base = load_config(RECIPE)
    network = measure(base.network, RECIPE_SHAPE, precision=base.train.precision)
    h100 = DEVICES["h100"]
    plans = [Plan(base, network, h100, gpus) for gpus in (8, 64, 512)]
    batches = [
        (f"{n:,}", Plan(load_config(RECIPE, [f"train.batch={n}"]), network, h100, 1))
        for n in (256, 1024, 4096, 16384)
    ]
    rates = [
        (f"{rate:g}", Plan(base, network, h100._replace(network=1e9 * rate), 1))
        for rate in (50, 12.5, 3.125)
    ]
    return {
        "memory": memory_table(plans),
        "time": time_table(plans, RECIPE_SHAPE),
        "batches": limit_table(batches, "`train.batch`"),
        "networks": limit_table(rates, "GB/s a GPU between nodes"),
    }


def with_tables(page: str, tables: dict[str, str]) -> str:
    """A page with each table between the marks that have its name."""
    for name, content in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{PAGE} has no place for the table: {begin} ... {end}")
        page = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-c", "--config", type=Path, default=RECIPE)
    parser.add_argument("--gpus", type=at_least_one, nargs="+", default=[8, 64, 512])
    parser.add_argument("--device", choices=DEVICES, default="h100")
    parser.add_argument("--bandwidth", type=positive, help="GB/s of a GPU between nodes")
    parser.add_argument("--local", type=at_least_one, help="GPUs of a node")
    parser.add_argument(
        "--shape", type=at_least_one, nargs="+", help="of a sample; else the data say it"
    )
    parser.add_argument("--table", action="store_true", help="write the tables of the page")
    parser.add_argument("--out", type=Path, help="append the figures as a JSON line")
    parser.add_argument("overrides", nargs="*", metavar="KEY.PATH=VALUE")
    args = parser.parse_intermixed_args()
    if args.table:
        PAGE.write_text(with_tables(PAGE.read_text(), page_tables()))
        return
    config = load_config(args.config, args.overrides)
    shape = tuple(args.shape or config.data.shape)
    device = DEVICES[args.device]
    device = device._replace(
        network=1e9 * args.bandwidth if args.bandwidth else device.network,
        local=args.local or device.local,
    )
    network = measure(config.network, shape, precision=config.train.precision)
    plans = [Plan(config, network, device, gpus) for gpus in args.gpus]
    flops = float(network.flops.per_image.sum())
    print(
        f"{config.network.kind} of {network.parameters:,} parameters on samples {shape}:"
        f" {flops / 1e9:,.0f} GFLOP an image forward and backward, of which"
        f" {network.kept.per_image / 1e6:,.0f} MB are kept. On {device.title}, expected, not"
        " measured; compiled as well as can be – uncompiled:"
    )
    print(f"\n{memory_table(plans)}\n\n{time_table(plans, shape)}\n")
    print(limit_table([(f"{config.train.batch:,}", replace(plans[0], gpus=1))], "`train.batch`"))
    if args.out is not None:
        with args.out.open("a") as file:
            both_ways = (replace(p, compiled=c) for p in plans for c in (True, False))
            file.writelines(f"{json.dumps(figures(plan))}\n" for plan in both_ways)


def figures(plan: Plan) -> dict[str, Any]:
    """The figures of a plan by name."""
    names = ("gpus", "compiled", "parts", "step", "rate_of_images", "efficiency", "seconds")
    found = {name: getattr(plan, name) for name in names}
    return {"device": plan.device.title, "memory": plan.memory(plan.parts), **found}


if __name__ == "__main__":
    run(main)
