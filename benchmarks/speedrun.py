"""How good a recipe becomes in so many minutes, compiling included: one JSON line.

    python benchmarks/speedrun.py --minutes M --data DIR --out DIR [-c CONFIG] [KEY=VALUE ...]
    python benchmarks/speedrun.py --out DIR --resume [--piece MINUTES]

A few steps tell how many images the minutes hold; the recipe is trained on so many, to the end of
its schedule. DIR is the folder of the data set. With `--piece` a call stops in time, after which
`--resume` goes on. At the end come
samples, a grid of them, and their distance to the data in features fitted to these; that time does
not count. Without a GPU the recipe is configs/mnist.yaml, else configs/cifar10-30min.yaml.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from measure import at_least_one, positive, record, run

from flowmatch.config import Config, load_config
from flowmatch.evaluation.preparation import Request, prepare
from flowmatch.evaluation.sweep import FlowSamples, Sweep, measure_row
from flowmatch.pictures import columns_for, image_grid
from flowmatch.runs import build_trainer, load
from flowmatch.sampling import noise, sample
from flowmatch.tensors import to_uint8
from flowmatch.training.cost import forward_flops, peak_rate
from flowmatch.training.distributed import precision_of, start_processes
from flowmatch.training.tracking import read_metrics

ROOT = Path(__file__).parents[1]
WARM, MEASURED = 5, 20
"""Steps that compile and choose, and steps whose rate is measured."""
SPARE = 0.92
"""Share of the time that is planned; starts, checkpoints and grids take the rest."""


@dataclass(frozen=True)
class Plan:
    """What a run was given, and what it has used."""

    minutes: float
    config: str
    overrides: list[str]
    images: int
    compile_seconds: float
    spent_seconds: float
    judged: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-c", "--config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--minutes", type=positive, help="of training  [default: 30]")
    parser.add_argument("--piece", type=positive, help="minutes after which this call stops")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--samples", type=at_least_one, default=5000)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/speedrun.jsonl")
    args = parser.parse_intermixed_args()
    began = time.perf_counter()
    file = args.out / "plan.json"
    plan = taken_up(file, args) if args.resume else planned(args)
    config = config_of(plan)
    if args.piece is not None:
        stop_after(60 * args.piece - (time.perf_counter() - began))
    accelerator = start_processes(config.train.precision)
    run_dir = args.out / "run"
    trainer = build_trainer(
        config, run_dir, resume="latest" if run_dir.exists() else None, accelerator=accelerator
    )
    file.write_text(json.dumps(asdict(plan)))  # a kill loses the time of this call, not the run
    before = trainer.step
    result = trainer.run()
    if result.step > before:
        plan = replace(plan, spent_seconds=plan.spent_seconds + time.perf_counter() - began)
        file.write_text(json.dumps(asdict(plan)))
    if result.stopped:
        print(
            f"stopped at step {result.step:,} of {config.train.total_steps:,}; go on with --resume"
        )
        return
    del trainer
    judge(plan, config, run_dir, accelerator, args)
    file.write_text(json.dumps(asdict(replace(plan, judged=True))))


def taken_up(file: Path, args: argparse.Namespace) -> Plan:
    """The plan of a run that has begun.

    Raises:
        ValueError: there is none, it is done, or something else is asked for.
    """
    if not file.is_file():
        raise ValueError(f"{args.out} holds no run to go on with; leave out --resume")
    if args.minutes is not None or args.config is not None or args.overrides:
        raise ValueError("--resume keeps to its plan; leave out --minutes, --config and overrides")
    plan = Plan(**json.loads(file.read_text()))
    if plan.judged:
        raise ValueError(f"the run in {args.out} is finished, and its line is recorded")
    return plan


def planned(args: argparse.Namespace) -> Plan:
    """How many images the minutes hold, by a few steps.

    Raises:
        ValueError: not one step, or the folder holds something.
    """
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} exists; go on with --resume, or choose another --out")
    recipe = "cifar10-30min" if torch.cuda.is_available() else "mnist"
    path = args.config or ROOT / f"configs/{recipe}.yaml"
    has_root = hasattr(load_config(path, args.overrides).data, "root")
    asked = [*([f"data.root={args.data}"] if has_root else []), *args.overrides]
    minutes = args.minutes or 30.0
    plan = Plan(minutes, str(path), asked, 0, 0.0, 0.0)
    config = config_of(plan)
    accelerator = start_processes(config.train.precision)
    began = time.perf_counter()
    trainer = build_trainer(config, args.out / "trial", accelerator=accelerator)
    seconds = []
    for _ in range(WARM + MEASURED):
        before = time.perf_counter()
        trainer.train_step()
        if accelerator.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - before)
    step = statistics.median(seconds[WARM:])
    shutil.rmtree(args.out / "trial")
    spent = time.perf_counter() - began
    images = int(SPARE * (60 * minutes - spent) / step) * config.train.batch
    if images <= 0:
        raise ValueError(f"{minutes:g} minutes do not hold a step; give more with --minutes")
    print(f"{config.train.batch / step:,.0f} images/s: {images:,} images in {minutes:g} minutes")
    return replace(plan, images=images, compile_seconds=sum(seconds[:WARM]) - WARM * step)


def config_of(plan: Plan) -> Config:
    """The recipe, as long as planned, with lengths that follow its own."""
    config = load_config(plan.config, plan.overrides)
    if not plan.images:
        return config
    share = plan.images / (config.train.total_steps * config.train.batch)
    lengths = ("schedule.warmup_images", "save_every_images", "sample_every_images")
    more = [f"train.images={plan.images}", "train.steps=null"]
    more += [f"train.evaluate_every_{unit}=null" for unit in ("steps", "images")]
    for name in lengths:
        value: Any = config.train
        for part in name.split("."):
            value = getattr(value, part)
        if value is not None:
            more.append(f"train.{name}={max(int(value * share), config.train.batch)}")
    return load_config(plan.config, [*plan.overrides, *more])


def stop_after(seconds: float) -> None:
    """Ask this process to stop, as a scheduler does, when so many seconds are over."""
    timer = threading.Timer(max(seconds, 1.0), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


def judge(
    plan: Plan, config: Config, run_dir: Path, accelerator: Accelerator, args: argparse.Namespace
) -> None:
    """Draw and measure the samples, and write the line."""
    flow = load(run_dir, device=accelerator.device)
    solver, sweep = config.sample.solver, Sweep(args.samples)
    conditional = flow.num_classes is not None
    scores = prepare(Request(), flow.shape, config, accelerator, conditional=conditional)
    row, _ = measure_row(FlowSamples(flow, solver, sweep, accelerator), sweep, scores, accelerator)
    seeds = range(100)
    cond = torch.arange(100, device=accelerator.device) % flow.num_classes if conditional else None
    x0 = noise(seeds=seeds, shape=flow.shape).to(accelerator.device)
    images = sample(flow, x0, solver, cond)
    image_grid(to_uint8(images), columns=columns_for(flow.num_classes)).save(
        args.out / "samples.png"
    )
    trained = [r for r in read_metrics(run_dir / "metrics.jsonl") if "seconds" in r]
    rate = plan.images / trained[-1]["seconds"]
    flops = forward_flops(flow, x0[:1], None if cond is None else {"label": cond[:1]})
    precision = precision_of(accelerator)
    peak = peak_rate(accelerator.device, precision) * accelerator.num_processes
    line = {
        "recipe": Path(plan.config).name,
        "overrides": [o for o in plan.overrides if not o.startswith("data.root=")],
        "minutes": plan.minutes,
        "minutes_spent": plan.spent_seconds / 60,
        "images": plan.images,
        "images_per_second": rate,
        "utilisation": 3 * flops * rate / peak,
        "compile_seconds": plan.compile_seconds,
        "precision": precision,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "samples": args.samples,
        "solver": asdict(solver),
        "nfe": row["nfe"],
        "metrics": row["metrics"],
    }
    record(line, args.results)


if __name__ == "__main__":
    run(main)
