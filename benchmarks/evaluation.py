"""What numbers cost: reference statistics, and the metrics beside the sampling that they measure.

    python benchmarks/evaluation.py [--images 50000] [--samples 1000] [--nfe 100]

First the statistics of so many 32x32 colour images, by a net that has the size of fitted ones. Then
a row of a table of 8x8 digits: drawing the samples with a network of a million parameters, against
all the rest, that is features and metrics.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from measure import record

from flowmatch.config import load_config
from flowmatch.data import Digits, MemoryImages
from flowmatch.evaluation.scores import ImageScores
from flowmatch.evaluation.statistics import compute_statistics
from flowmatch.evaluation.sweep import FlowSamples, Sweep, measure_row
from flowmatch.features import FittedNet, fitted
from flowmatch.features.convnet import Architecture, ConvNet
from flowmatch.features.fittednet import RECIPE, Facts
from flowmatch.randomness import keyed_generator
from flowmatch.runs import build_flow
from flowmatch.solvers import Heun
from flowmatch.training.distributed import start_processes

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--nfe", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/evaluation.jsonl")
    args = parser.parse_args()
    accelerator = start_processes()

    generator = keyed_generator("benchmark images")
    shape = (args.images, 3, 32, 32)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(args.images) % 10
    net = unfitted(shape[1:])
    began = time.perf_counter()
    images = MemoryImages(pixels, labels, num_classes=10)
    compute_statistics(images, net.to(accelerator.device), accelerator, name="random images")
    reference_seconds = time.perf_counter() - began
    print(f"statistics of {args.images:,} images of 32x32: {reference_seconds:.1f} s")

    train, test = Digits().build("train"), Digits().build("test")
    digits = fitted(train, test)
    statistics = compute_statistics(train, digits, accelerator, name="digits train")
    scores = ImageScores(digits, statistics, train, test, conditional=True)
    flow = build_flow(load_config(ROOT / "configs/digits.yaml")).eval().requires_grad_(False)
    sweep = Sweep(args.samples)
    solver = Heun(steps=max(args.nfe // 2, 1))
    subject = FlowSamples(flow.to(accelerator.device), solver, sweep, accelerator)
    began = time.perf_counter()
    row, _ = measure_row(subject, sweep, scores, accelerator)
    measuring = time.perf_counter() - began - row["seconds"]
    print(f"{args.samples:,} samples at {row['nfe']:g} NFE: {row['seconds']:.1f} s to draw,")
    print(f"{measuring:.1f} s for features and metrics: {measuring / row['seconds']:.3f} of it")
    record(
        {
            "reference_images": args.images,
            "reference_seconds": round(reference_seconds, 2),
            "samples": args.samples,
            "nfe": row["nfe"],
            "sampling_seconds": row["seconds"],
            "metric_seconds": round(measuring, 3),
        },
        args.out,
    )


def unfitted(shape: tuple[int, ...]) -> FittedNet:
    """A feature net before its fitting, which costs what a fitted one does."""
    architecture = Architecture(shape=shape, outputs=10)
    facts = Facts(
        recipe=RECIPE,
        architecture=architecture,
        task="labels",
        accuracy=0.0,
        accuracy_on=0,
        data="none",
        seed=0,
    )
    return FittedNet(ConvNet(architecture), facts)


if __name__ == "__main__":
    main()
