"""Run directories made by hand: a bare one, and one with everything a report can show."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from flowmatch.config import load_config, to_yaml
from flowmatch.runs import build_flow, write_config
from flowmatch.training.checkpoint import Checkpoints
from flowmatch.training.contents import Contents
from flowmatch.training.ema import Exponential
from flowmatch.training.sharding import tensors_of

PROTOCOL = "5,000 samples against digits train (1,437 images); EMA weights; seed 0"


@pytest.fixture
def bare(tiny, tmp_path) -> Path:
    """A run directory that holds its config and nothing else."""
    folder = tmp_path / "runs" / "bare run"
    folder.mkdir(parents=True)
    write_config(folder, load_config(tiny))
    return folder


@pytest.fixture
def full(tiny, tmp_path) -> Path:
    """A run directory with a checkpoint, sample grids, metrics of every kind, an evaluation."""
    folder = tmp_path / "runs" / "full"
    folder.mkdir(parents=True)
    config = load_config(tiny)
    write_config(folder, config)
    network = tensors_of(build_flow(config).network)
    contents = Contents(
        network=network,
        averages={Exponential(): network},
        state={"step": 6, "images": 96, "optimizer": None, "scaler": None},
        config_yaml=to_yaml(config),
    )
    Checkpoints(folder).save(6, contents, keep_last=1)
    (folder / "samples").mkdir()
    for step in range(1, 6):
        Image.new("RGB", (40, 30), (40 * step, 0, 0)).save(folder / f"samples/step{step:07d}.png")
    lines = [json.dumps(record) for record in records()]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 7, "ima']))
    (folder / "evaluation").mkdir()
    (folder / "evaluation/data-5000.json").write_text(json.dumps(evaluation()))
    Image.new("RGB", (20, 20), "white").save(folder / "evaluation/data-5000-heun-50.png")
    return folder


def records() -> list[dict]:
    """What the trainer writes, as read back: six steps of sixteen images, a restart, a NaN."""
    started = {
        "device": "made-up GPU",
        "processes": 2,
        "precision": "bf16",
        "threads": 1,
        "torch": "2.15.0",
        "flowmatch": "0.1.0",
        "forward_flops_per_image": 2e9,
        "matmul_flops_per_second": 1e12,
    }
    out: list[dict] = [{"step": 0, "images": 0, "started": started}]
    for step in range(1, 7):
        at = {"step": step, "images": 16 * step}
        t_losses = [None, *(1 / step + 0.1 * k for k in range(9))]
        line = {"lr": 1e-3, "loss": 2 / step, "images_per_second": 8.0, "grad_norm": 1 / step}
        out.append({**at, **line, "seconds": 2.0 * step, "loss_t": t_losses})
        out.append({**at, "grad_norm_t": [0.5] * 10, "curvature": 0.1, "clip_share": None})
        made = {"num_samples": 100, "reduced": True, "primary": "fd_data"}
        metrics = {"fd_data": (step - 4) ** 2 + 1.5, "recall": 0.5}
        stated = {"metrics": metrics, "protocol": "fd_data on 100 samples (reduced)"}
        out.append({**at, "evaluation": {**made, **stated}})
    out.insert(5, {"step": 2, "images": 32, "started": started})
    out.append({"step": 6, "images": 96, "loss": math.nan, "lr": 0.0})
    return out


def evaluation() -> dict:
    """An evaluation of two solvers, with anchors, memorisation and classes."""
    rows = [
        {
            "solver": solver,
            "steps": steps,
            "nfe": nfe,
            "seconds": 3.0,
            "nonfinite": 0,
            "metrics": {"fd_data": fd, "recall": 0.7, "nn_ratio": 0.98, "authentic": 0.7},
            "spread": {"fd_data": 0.05},
            "protocol": f"{PROTOCOL}; {solver} {steps} steps",
            "grid": "data-5000-heun-50.png" if nfe == 100 else None,
        }
        for solver, steps, nfe, fd in (
            ("euler", 10, 10, 9.5),
            ("euler", 100, 100, 2.25),
            ("heun", 5, 10, 7.5),
            ("heun", 50, 100, 1.75),
        )
    ]
    share, counts = [0.9, 0.8, None, *[1.0] * 7], [50] * 10
    return {
        "protocol": {"samples": 5000, "reference": {"name": "digits train"}},
        "rows": rows,
        "anchors": {"held-out data": {"count": 360, "metrics": {"fd_data": 1.25, "recall": 0.9}}},
        "classes": {"requested": counts, "recognised_share": share, "predicted_counts": counts},
    }
