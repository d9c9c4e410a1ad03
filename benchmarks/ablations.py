"""What each part of the recipe is worth: one change at a time, at an equal number of images.

    python benchmarks/ablations.py --data DIR [--only GROUP ...] [--seeds 3] [--images 16000]
    python benchmarks/ablations.py --table

Each line of `VARIANTS` changes one thing of `BASE`, MNIST at 14x14. It is trained from several
seeds, and the distance of its samples to the data in features fitted to them goes to
results/ablations.jsonl, where rows that are there already are not made again: a killed run goes
on. `--table` turns the rows into the tables of docs/ablations.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measure import record

from flowmatch.config import Config, parse_config
from flowmatch.evaluation.preparation import Request, prepare
from flowmatch.evaluation.scores import Scores
from flowmatch.evaluation.sweep import FlowSamples, Sweep, measure_row
from flowmatch.runs import build_trainer, load
from flowmatch.solvers import Heun
from flowmatch.training.cost import forward_flops
from flowmatch.training.distributed import start_processes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/ablations.jsonl"
PAGE = ROOT / "docs/ablations.md"
METRIC = "fd_data_excess"
OWN = "decay0.99"
ENOUGH = 3
"""Seeds without which nothing is called a difference."""

BASE: dict[str, Any] = {
    "data": {"kind": "mnist", "image_size": 14},
    "network": {
        "kind": "unet",
        "channels": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_resolutions": [7],
        "scale_shift": True,
        "num_classes": 10,
    },
    "predict": "x1",
    "loss": {"kind": "flow_matching", "time": {"kind": "logit_normal"}, "label_dropout": 0.1},
    "train": {
        "images": 16_000,
        "batch": 64,
        "lr": 1e-3,
        "schedule": {"kind": "cosine", "warmup_images": 1600},
        "ema": {"kind": "exponential", "decay": 0.99},
        "save_every_steps": None,
    },
}

SIZES = {
    8: ["data={kind: digits, image_size: 8}", "network.attention_resolutions=[4]"],
    14: ["data.image_size=14"],
}
"""What suits the size of the images: MNIST, or the digits of scikit-learn at 8x8."""

DIT = [
    "network.kind=dit",
    "network.patch=2",
    "network.width=128",
    "network.depth=5",
    "network.heads=4",
]
MUON = ["train.optimizer.kind=muon"]
TOGETHER = [*MUON, "train.lr=3e-3", "train.batch=16"]
STRATIFIED = "loss.time={kind: stratified, of: {kind: logit_normal}}"
HUBER = "loss.distance.kind=huber"
AUGMENT = [
    "train.augment={kind: geometric, flip_x: 0, flip_y: 0, probability: 0.12}",
    "network.conditions={augment: {kind: vector, dim: 7, when_absent: zero}}",
]

VARIANTS: dict[str, dict[str, list[str]]] = {
    "base": {"base": []},
    "prediction and loss space": {
        "velocity, velocity loss": ["predict=velocity"],
        "x1, x1 loss": ["loss.space=x1"],
        "x0, velocity loss": ["predict=x0"],
        "EDM preconditioned, velocity loss": ["predict={kind: edm, sigma_data: 0.9}"],
        "EDM preconditioned, own loss": [
            "predict={kind: edm, sigma_data: 0.9}",
            "loss.space=prediction",
        ],
    },
    "optimizer": {
        "AdamW, 5e-4": ["train.lr=5e-4"],
        "AdamW, 2e-3": ["train.lr=2e-3"],
        "AdamW, 4e-3": ["train.lr=4e-3"],
        "Muon, 1e-3": MUON,
        "Muon, 3e-3": [*MUON, "train.lr=3e-3"],
        "Muon, 1e-2": [*MUON, "train.lr=1e-2"],
    },
    "batch": {
        "16": ["train.batch=16"],
        "32": ["train.batch=32"],
        "128": ["train.batch=128"],
    },
    "time density": {
        "uniform": ["loss.time.kind=uniform"],
        "logit-normal, mean -0.5": ["loss.time.mean=-0.5"],
        "logit-normal, mean 0.5": ["loss.time.mean=0.5"],
        "EDM log-normal (-1.2, 1.2)": ["loss.time.kind=log_normal"],
        "mode 1.29": ["loss.time.kind=mode"],
        "cosmap": ["loss.time.kind=cosmap"],
        "u-shaped 4": ["loss.time.kind=u_shaped"],
        "beta (1.5, 1.5)": ["loss.time.kind=beta"],
        "adaptive": ["loss.time={kind: adaptive, of: {kind: logit_normal}}"],
    },
    "draws": {"stratified": [STRATIFIED]},
    "weighting": {
        "min-SNR 5": ["loss.weighting.kind=min_snr"],
        "EDM": ["loss.weighting={kind: edm, sigma_data: 0.9}"],
        "sigmoid 0": ["loss.weighting.kind=sigmoid"],
        "uncertainty": ["loss.weighting.kind=uncertainty"],
        "Huber 1": [HUBER],
        "pseudo-Huber 0.1": ["loss.distance={kind: pseudo_huber, c: 0.1}"],
    },
    "augmentation": {"geometric 0.12": AUGMENT},
    "network": {
        "DDPM++": ["network.kind=ddpmpp", "network.channels=30", "network.dropout=0"],
        "EDM2, 1e-2": [
            "network.kind=edm2",
            "network.channels=30",
            "network.head_channels=60",
            "train.lr=1e-2",
        ],
        "DiT": DIT,
        "DiT, Muon, 3e-3": [*DIT, *MUON, "train.lr=3e-3"],
    },
    "together": {
        "Muon, 3e-3, batch 32": [*MUON, "train.lr=3e-3", "train.batch=32"],
        "Muon, 3e-3, batch 16": TOGETHER,
        "Muon, 1e-2, batch 16": [*TOGETHER, "train.lr=1e-2"],
        "Muon, 3e-3, batch 8": [*TOGETHER, "train.batch=8"],
        "Muon, 3e-3, batch 16, stratified": [*TOGETHER, STRATIFIED],
        "Muon, 3e-3, batch 16, stratified, Huber 1": [*TOGETHER, STRATIFIED, HUBER],
        "Muon, 3e-3, batch 16, stratified, Huber 0.5": [
            *TOGETHER,
            STRATIFIED,
            HUBER,
            "loss.distance.delta=0.5",
        ],
    },
}
"""Groups of variants: overrides of `BASE` by name."""

AVERAGES = [
    {"decay": 0.99},
    {"decay": 0.9999},
    {"halflife_images": 1000, "warmup": "none"},
    {"halflife_images": 4000, "warmup": "none"},
    {"kind": "power", "std": 0.05},
    {"kind": "power", "std": 0.1},
    {"kind": "power", "std": 0.2},
]
"""Averages of the base run's weights, all of the same training; "model" is none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with mnist/")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="groups; all without")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=14, choices=list(SIZES), help="of an image")
    parser.add_argument("--images", type=int, default=16_000, help="training images of each run")
    parser.add_argument("--samples", type=int, default=1000, help="samples of each evaluation")
    parser.add_argument("--worker", default="0/1", metavar="K/N", help="make only each Nth run")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the tables of the rows")
    args = parser.parse_args()
    if args.table:
        between_marks("parts", "\n\n".join(table_of(rows) for rows in by_images(rows_of(args.out))))
        return
    worker, workers = (int(word) for word in args.worker.split("/"))
    groups = args.only or list(VARIANTS)
    runs = [
        (group, name, seed)
        for seed in range(args.seeds)
        for group in groups
        for name in VARIANTS[group]
    ]
    settings = (args.size, args.images)
    done = {
        (r["group"], r["variant"], r["seed"])
        for r in rows_of(args.out)
        if (r["size"], r["asked_images"]) == settings
    }
    scores = None
    for group, name, seed in runs[worker::workers]:
        if (group, name, seed) in done:
            continue
        config = config_of(group, name, seed, args)
        if scores is None:
            scores = scores_of(config)
        for row in run(config, scores, args.work / f"worker{worker}", args.samples):
            key = {"group": group, "variant": name, "seed": seed, "asked_images": args.images}
            record({**key, **row}, args.out)


def config_of(group: str, name: str, seed: int, args: argparse.Namespace) -> Config:
    """The config of a run."""
    overrides = [*SIZES[args.size], f"train.seed={seed}", f"train.images={args.images}"]
    if args.size != 8:
        overrides.append(f"data.root={args.data}")
    if group == "base":
        overrides.append(f"train.ema={json.dumps(AVERAGES)}")
    return parse_config(BASE, [*overrides, *VARIANTS[group][name]])


def scores_of(config: Config) -> Scores:
    """Reference and features, which all runs share."""
    accelerator = start_processes()
    classes = getattr(config.network, "num_classes", None) is not None
    return prepare(Request(), config.data.shape, config, accelerator, conditional=classes)


def run(config: Config, scores: Scores, folder: Path, samples: int) -> Iterator[dict[str, Any]]:
    """Train once, and measure each of its averages."""
    accelerator = start_processes()
    shutil.rmtree(folder, ignore_errors=True)
    began = time.process_time()
    trainer = build_trainer(config, folder, accelerator=accelerator)
    trainer.run()
    seconds = time.process_time() - began
    profiles = config.train.profiles
    names = [profile.name for profile in profiles] + (["model"] if len(profiles) > 1 else [])
    for name in names:
        flow = load(folder, weights="ema" if name == profiles[0].name else name)
        solver, sweep = Heun(steps=5), Sweep(samples, batch=250)
        subject = FlowSamples(flow, solver, sweep, accelerator)
        row, _ = measure_row(subject, sweep, scores, accelerator)
        one = torch.zeros(1, *config.data.shape)
        yield {
            "average": name,
            "images": trainer.state.images,
            "size": config.data.shape[-1],
            "samples": samples,
            "solver": "heun:5",
            "parameters": sum(p.numel() for p in flow.parameters()),
            "forward_flops": forward_flops(flow, one),
            "cpu_seconds": round(seconds, 1),
            "metrics": row["metrics"],
        }


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def between_marks(name: str, table: str) -> None:
    """Put a table into docs/ablations.md, between the marks with its name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = PAGE.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{PAGE} has no place for the table: {begin} ... {end}")
    PAGE.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}")


def by_images(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of as many training images and pixels each, in the order in which they came."""
    kinds: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["asked_images"], row["size"]), []).append(row)
    return list(kinds.values())


def table_of(rows: list[dict[str, Any]]) -> str:
    """One table: a line a variant, its distances from all seeds, and their ratio to the base."""
    order = [(group, name) for group, variants in VARIANTS.items() for name in variants]
    named = {(r["group"], r["variant"], r["average"]): None for r in rows}
    names = sorted(named, key=lambda name: order.index(name[:2]))
    base = distances(rows, "base", "base", OWN)
    first = rows[0]
    lines = [
        f"**{first['size']}x{first['size']}, {first['asked_images']:,} training images**",
        "",
        "| part | variant | distance | over the base's | parameters | MFLOP |",
        "|---|---|---|---|---|---|",
    ]
    for group, variant, average in names:
        values = distances(rows, group, variant, average)
        row = next(r for r in rows if (r["group"], r["variant"]) == (group, variant))
        shown = variant if average == OWN or group != "base" else f"average: {average}"
        ratio = statistics.mean(values) / statistics.mean(base)
        overlap = min(values) <= max(base) and max(values) >= min(base)
        apart = " *" if len(values) >= ENOUGH and not overlap else ""
        cells = [
            group,
            shown,
            f"{statistics.mean(values):.3g} ({', '.join(f'{v:.3g}' for v in values)})",
            f"{ratio:.2f}{apart}",
            f"{row['parameters']:,}",
            f"{row['forward_flops'] / 1e6:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def distances(rows: list[dict[str, Any]], group: str, variant: str, average: str) -> list[float]:
    """The distances of a variant, by seed."""
    wanted = (group, variant, average)
    found = [r for r in rows if (r["group"], r["variant"], r["average"]) == wanted]
    return [r["metrics"][METRIC] for r in sorted(found, key=lambda r: r["seed"])]


if __name__ == "__main__":
    main()
