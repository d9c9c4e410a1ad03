"""The likelihood of a data set under a trained flow, with everything that the number depends on."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import flowmatch
from flowmatch.data import Batch, DataConfig, Dataset, Latent, Split
from flowmatch.data.conditions import stamp_of
from flowmatch.data.dataset import digest as data_digest
from flowmatch.dealing import others_of
from flowmatch.evaluation.protocol import digest
from flowmatch.evaluation.sharding import evenly
from flowmatch.flow import Flow
from flowmatch.guidance import CountNFE
from flowmatch.likelihood import (
    Divergence,
    Hutchinson,
    LogProb,
    Mean,
    bits_per_dim,
    estimate_log_prob,
    importance_weighted_bound,
    mean_with_errors,
)
from flowmatch.sampling import sample
from flowmatch.solvers import Dopri5, Solver, describe
from flowmatch.tensors import mean_flat, to_uint8

_ADAPTIVE = Dopri5()
_FOUR_PROBES = Hutchinson(probes=4)
_BINS = 256


@dataclass(frozen=True, kw_only=True)
class LikelihoodJob:
    """Which data, and how their likelihood is found.

    Args:
        split: which part of the run's data.
        count: at most so many samples, evenly spaced over the split.
        solver: of an ordinary differential equation that knows the field alone.
        divergence: exact, or from probes.
        dequantisations: draws of noise for each image, whose bound is the tighter the more there
            are; for points, which have no bins, it must be 1.
        batch: samples that are computed at once; changes nothing but speed and memory.
        seed: of the dequantisation; that of the probes lies in `divergence`.
        t0, t1: times of source and data, see `log_prob`.
    """

    split: Split = "test"
    count: int = 1000
    solver: Solver = _ADAPTIVE
    divergence: Divergence = _FOUR_PROBES
    dequantisations: int = 1
    batch: int = 100
    seed: int = 0
    t0: float = 0.0
    t1: float = 1.0

    def __post_init__(self) -> None:
        for name, flag in (
            ("count", "--num-samples"),
            ("dequantisations", "--dequantisations"),
            ("batch", "--bspp"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.t0 < self.t1 <= 1:
            raise ValueError(f"times must be 0 <= t0 < t1 <= 1, got {self.t0:g} and {self.t1:g}")


def check_data(data: DataConfig) -> None:
    """Refuse data whose density says nothing about what a user sees."""
    if isinstance(data, Latent):
        raise ValueError(
            "a density of latents is none of images, and no bits/dim follow from it; measure a"
            " model of images"
        )


def data_likelihood(
    flow: Flow,
    dataset: Dataset,
    job: LikelihoodJob,
    *,
    device: torch.device | str = "cpu",
    model: dict[str, Any],
    data_name: str,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """Measure a data set: its protocol, and nats, bits a dimension, and round-trip error.

    A conditional flow gets the conditions of the data: its likelihood is that of the images given
    their classes and what else it knows.

    Args:
        flow: the model in evaluation mode, on `device`.
        dataset: the split named in `job`.
        model: what the protocol says of the weights.
        data_name: what to call the data, e.g. "digits".
        progress: told how many samples are done.
    Raises:
        ValueError: the job does not suit the data, or a density is not finite.
    """
    images = len(dataset.shape) == 3
    if not images and job.dequantisations > 1:
        raise ValueError("points have no bins to spread over; leave out --dequantisations")
    index = evenly(len(dataset), job.count)
    began, parts = time.perf_counter(), []
    for some in torch.split(index, job.batch):
        parts.append(_measure(flow, dataset.plain(some), some, job, device))
        progress(len(some))
    mean = mean_with_errors(torch.cat([p.nats for p in parts]), torch.cat([p.error for p in parts]))
    round_trip = torch.cat([p.round_trip for p in parts])
    result: dict[str, Any] = {
        "nats": _plain(mean),
        "bits_per_dim": _plain(_in_bits(mean, math.prod(dataset.shape))) if images else None,
        "round_trip_rms": {"mean": float(round_trip.mean()), "largest": float(round_trip.max())},
        "nfe": sum(p.nfe * len(p.nats) for p in parts) / len(index),
        "seconds": round(time.perf_counter() - began, 3),
    }
    data = {
        "name": data_name,
        "split": job.split,
        "hash": dataset.identity(),
        "conditions": _hash_of_others(flow, dataset),
        "count": len(index),
        "of": len(dataset),
        "levels": len(set().union(*(p.levels for p in parts))) if images else None,
    }
    protocol = _protocol(flow, job, data, model)
    return {
        "protocol": protocol,
        "sentence": sentence(protocol, nfe=result["nfe"]),
        "result": result,
    }


def summary(document: dict[str, Any]) -> list[str]:
    """The lines that a document is printed as."""
    result, protocol = document["result"], document["protocol"]
    shown = [("nats", "nats a sample"), ("bits_per_dim", "bits/dim")]
    lines = [f"{label:15}{_with_errors(result[k])}" for k, label in shown if result[k]]
    trip = result["round_trip_rms"]
    lines += [
        f"{'round trip':15}{trip['mean']:.2g} RMS from data to noise to data, at most"
        f" {trip['largest']:.2g}",
        "log-density in nats: higher is better; bits/dim: lower is better"
        if result["bits_per_dim"]
        else "log-density in nats: higher is better",
        "± one standard error over the samples"
        + (
            "" if protocol["divergence"]["kind"] == "exact" else "; in brackets, that of the probes"
        ),
        document["sentence"],
    ]
    levels = protocol["data"]["levels"]
    if levels is not None and levels < _BINS // 2:
        lines.append(
            f"these images use {levels} of {_BINS} levels: their bits/dim does not compare with"
            " that of images which use all; to code the levels alone, all equally likely, takes"
            f" {math.log2(levels):.2f}"
        )
    return lines


def file_name(protocol: dict[str, Any]) -> str:
    """A file name that differs where the protocol does, whatever the run's folder is called."""
    model = {k: v for k, v in protocol["model"].items() if k != "name"}
    data, step = protocol["data"], protocol["model"].get("step")
    at = f"step{step:07d}-" if step is not None else ""
    return f"{at}{data['split']}-{data['count']}-{digest({**protocol, 'model': model})}.json"


def write(document: dict[str, Any], path: Path) -> None:
    """Write the JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def sentence(protocol: dict[str, Any], *, nfe: float) -> str:
    """One line that says how the numbers came about."""
    data, model, noise = protocol["data"], protocol["model"], protocol["dequantisation"]
    known = model["images_seen"] is not None
    seen = f", {model['images_seen']:,} samples seen" if known else ""
    solver, divergence = protocol["solver"], protocol["divergence"]
    settings = " ".join(f"{k} {v:g}" for k, v in solver.items() if k in ("steps", "rtol", "atol"))
    (start, end), told = protocol["times"], protocol["labels"]
    others = f" {data['conditions']}" if data.get("conditions") else ""
    parts = [
        f"{data['count']:,} of {data['of']:,} {data['split']} samples of {data['name']}"
        f" {data['hash']}",
        {None: None, "of the data": "given the classes of the data"}.get(
            told, f"given {told}{others}"
        ),
        f"uniform dequantisation over {noise['bins']} bins, draws an image: {noise['draws']},"
        f" seed {noise['seed']}"
        if noise
        else None,
        f"{solver['kind']} {settings} from t={start:g} to {end:g}, {nfe:.4g} NFE",
        "exact divergence"
        if divergence["kind"] == "exact"
        else f"{divergence['law']} probes: {divergence['probes']}, seed {divergence['seed']}",
        f"{model['weights']} weights {model['hash']}{seen}",
        protocol["precision"],
        ", ".join(f"{name} {version}" for name, version in protocol["versions"].items()),
    ]
    return " | ".join(part for part in parts if part)


class _Part(NamedTuple):
    """What one batch gave; `levels` are the uint8 levels that its images use."""

    nats: Tensor
    error: Tensor
    round_trip: Tensor
    nfe: float
    levels: set[int]


@torch.no_grad()
def _measure(
    flow: Flow, batch: Batch, index: Tensor, job: LikelihoodJob, device: torch.device | str
) -> _Part:
    """The densities of a batch; its round trip starts at the first draw of its noise."""
    x1, seeds = batch.x1.to(device), index.tolist()
    cond = flow.known({name: value.to(device) for name, value in batch.cond.items()})
    counted = CountNFE(flow)
    seen: list[Tensor] = []
    found: list[LogProb] = []

    def log_density(x: Tensor) -> Tensor:
        seen.append(x)
        found.append(
            estimate_log_prob(
                counted,
                x,
                job.solver,
                cond,
                divergence=job.divergence,
                seeds=seeds,
                t0=job.t0,
                t1=job.t1,
            )
        )
        return found[-1].nats

    if x1.ndim == 4:
        draws, levels = job.dequantisations, set(torch.unique(to_uint8(x1)).tolist())
        nats = importance_weighted_bound(log_density, x1, draws=draws, seeds=seeds, stream=job.seed)
    else:
        nats, levels = log_density(x1), set()
    if not bool(nats.isfinite().all()):
        bad = int((~nats.isfinite()).sum())
        raise ValueError(
            f"the density of {bad:,} of {len(nats):,} samples is not finite; use a finer solver, or"
            " keep away from an end where the velocity is singular: --t1 0.999 or --t0 0.001"
        )
    # the draws of a sample share its probes, so that their errors add up rather than cancel
    weights = torch.stack([r.nats for r in found]).softmax(0)
    error = (weights * torch.stack([r.error for r in found])).sum(0)
    again = sample(flow, found[0].x0, job.solver, cond, t0=job.t0, t1=job.t1)
    trip = mean_flat((again - seen[0]) ** 2).sqrt()
    nfe = counted.nfe / len(found)
    return _Part(nats.float().cpu(), error.float().cpu(), trip.float().cpu(), nfe, levels)


def _protocol(
    flow: Flow, job: LikelihoodJob, data: dict[str, Any], model: dict[str, Any]
) -> dict[str, Any]:
    """All that the numbers depend on."""
    noise = {"law": "uniform", "draws": job.dequantisations, "bins": _BINS, "seed": job.seed}
    return {
        "data": data,
        "labels": _conditions(flow),
        "dequantisation": noise if data["levels"] is not None else None,
        "solver": describe(job.solver),
        "times": [job.t1, job.t0],
        "divergence": asdict(job.divergence),
        "model": model,
        "precision": "fp32",
        "versions": {"flowmatch": flowmatch.__version__, "torch": torch.__version__},
    }


def _conditions(flow: Flow) -> str | None:
    """What is known of each sample, in words."""
    if others := others_of(flow):
        return f"{', '.join([*['label'] * bool(flow.num_classes), *others])} of the data"
    return "of the data" if flow.num_classes is not None else None


def _hash_of_others(flow: Flow, dataset: Dataset) -> str | None:
    """A hash of the conditions besides the class, in which the data's own hash has no part."""
    known = {name: v for name, v in dataset.values.items() if name in others_of(flow)}
    return data_digest(*stamp_of(known)) if known else None


def _in_bits(nats: Mean, dims: int) -> Mean:
    zero, one = bits_per_dim(torch.tensor([0.0, 1.0], dtype=torch.float64), dims, bins=_BINS)
    return nats.scaled(float(one - zero), float(zero))


def _plain(mean: Mean) -> dict[str, float | None]:
    """JSON knows no NaN: an error that is not known is null."""
    return {k: None if math.isnan(v) else v for k, v in mean._asdict().items()}


def _with_errors(mean: dict[str, float | None]) -> str:
    text = f"{mean['mean']:.4f}"
    if mean["standard_error"] is not None:
        text += f" ± {mean['standard_error']:.4f}"
    return text + (f" (probes {mean['probe_error']:.4f})" if mean["probe_error"] else "")
