"""configs/mnist.yaml against the recipe of flow-matching-pytorch's configs, on the same network.

    python benchmarks/recipe.py [--images 48000] [--seeds 3] [--only NAME ...] [KEY=VALUE ...]
    python benchmarks/recipe.py --table

MNIST at 28x28 without labels; then our recipe again, each time with one part of the other. The
distance of the samples after 10 evaluations to the data, in features fitted to them, goes to
results/recipe.jsonl, where rows that are there already are not made again. `--table` turns the
rows into the second table of docs/ablations.md.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from ablations import METRIC, between_marks, rows_of, run, scores_of
from measure import record

from flowmatch.config import Config, load_config

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/recipe.jsonl"

NETWORK = [
    "network.attention_resolutions=[]",
    "network.scale_shift=false",
    "network.num_classes=null",
    "loss.label_dropout=0",
]
"""What makes the network of the config that of flow-matching-pytorch's configs/mnist.yaml."""

PARTS = {
    "velocity prediction": ["predict=velocity"],
    "uniform times": ["loss.time={kind: uniform}"],
    "AdamW, 5e-4": ["train.optimizer={kind: adamw}", "train.lr=5e-4"],
    "batch 64": ["train.batch=64"],
}
"""The parts of the other recipe that matter most."""
REST = [
    "train.schedule.kind=linear",
    "train.ema={kind: exponential, decay: 0.9999, warmup: crowsonkb, power: 0.75}",
    "train.max_grad_norm=null",
]

HUBER = ["loss.distance={kind: huber, delta: 0.5}"]
"""What won at 14x14."""

OTHER, OURS = "flow-matching-pytorch", "configs/mnist.yaml"
THIRD = f"{OURS}, a third of the images"
VARIANTS: dict[str, list[str]] = {
    OTHER: [*(change for part in PARTS.values() for change in part), *REST],
    OURS: [],
    THIRD: [],
    **{f"{OURS}, but {name}": change for name, change in PARTS.items()},
    f"{OURS}, but Huber 0.5": HUBER,
    f"{THIRD}, but Huber 0.5": HUBER,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of all configs")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="all without")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=48_000, help="training images of each run")
    parser.add_argument("--samples", type=int, default=1000, help="samples of each evaluation")
    parser.add_argument("--work", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table of the rows")
    args = parser.parse_args()
    if args.table:
        between_marks("recipe", table_of(rows_of(args.out)))
        return
    asked = ("variant", "seed", "asked_images", "overrides")
    done = [[row[key] for key in asked] for row in rows_of(args.out)]
    scores = None
    for seed in range(args.seeds):
        for name in args.only or VARIANTS:
            values = [name, seed, args.images, args.overrides]
            if values in done:
                continue
            config = config_of(name, seed, args)
            scores = scores or scores_of(config)
            for row in run(config, scores, args.work, args.samples):
                record({**dict(zip(asked, values, strict=True)), **row}, args.out)


def config_of(name: str, seed: int, args: argparse.Namespace) -> Config:
    """The config of a run: the file, with the other network and the changes of the variant."""
    images = args.images // 3 if name.startswith(THIRD) else args.images
    sizes = [
        f"train.images={images}",
        f"train.schedule.warmup_images={images // 10}",
        f"train.seed={seed}",
        "train.save_every_images=null",
        "train.sample_every_steps=null",
    ]
    return load_config(ROOT / OURS, [*NETWORK, *sizes, *VARIANTS[name], *args.overrides])


def table_of(rows: list[dict[str, Any]]) -> str:
    """A line a variant: its distances from all seeds, and how often the other recipe's holds it."""
    named = {name: [r for r in rows if r["variant"] == name] for name in VARIANTS}
    means = {
        name: statistics.mean(r["metrics"][METRIC] for r in found)
        for name, found in named.items()
        if found
    }
    lines = [
        f"| recipe | images | distance | {OTHER}'s / this | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    for name, mean in means.items():
        found = sorted(named[name], key=lambda row: row["seed"])
        values = ", ".join(f"{row['metrics'][METRIC]:.3g}" for row in found)
        seconds = statistics.mean(row["cpu_seconds"] for row in found)
        cells = [name, f"{found[0]['images']:,}", f"{mean:.3g} ({values})"]
        lines.append(f"| {' | '.join([*cells, f'{means[OTHER] / mean:.2f}', f'{seconds:,.0f}'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
