"""A sampling job: samples on disk that depend on (seed, index) alone, and a record of how."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import flowmatch
from flowmatch.flow import Flow
from flowmatch.guidance import CountNFE, Guided
from flowmatch.pictures import columns_for, image_grid, scatter
from flowmatch.room import require_space
from flowmatch.sampling import noise, sample
from flowmatch.solvers import SolverConfig
from flowmatch.tensors import to_uint8
from flowmatch.training.tracking import Bar

if TYPE_CHECKING:
    from accelerate import Accelerator

Format = Literal["png", "npz"]


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """What to draw and where to put it.

    Args:
        count: number of samples, >= 1.
        save_dir: the folder for `00000.png ...` (or `samples.npz`), a contact sheet and
            `sampling.json`.
        solver: the integrator.
        batch: samples that a process computes at once; changes nothing but speed and memory.
        seed: sample i depends on (seed, i) alone.
        label: the class of all samples; None deals the classes in turn: sample i has i mod classes.
        guidance: classifier-free guidance scale; 1 is off.
        format: "png", one image a file, or "npz": `samples` (uint8 [N, H, W, C] for images, float32
            for anything else) and `labels`.
        weights_hash: names the weights in the record.
    """

    count: int
    save_dir: Path
    solver: SolverConfig
    batch: int = 100
    seed: int = 8888
    label: int | None = None
    guidance: float = 1.0
    format: Format = "png"
    weights_hash: str = ""

    def check(self, flow: Flow) -> None:
        """Refuse a job that cannot be done, before anything is written."""
        if self.count < 1:
            raise ValueError(f"--n_samples must be at least 1, got {self.count}")
        if self.batch < 1:
            raise ValueError(f"--bspp must be at least 1, got {self.batch}")
        classes = flow.num_classes
        if self.label is not None and classes is None:
            raise ValueError("this model takes no class label; leave out --class")
        if self.label is not None and classes is not None and not 0 <= self.label < classes:
            raise ValueError(
                f"class {self.label} is outside the model's classes 0 to {classes - 1}"
            )
        if not math.isfinite(self.guidance):
            raise ValueError(f"--guidance must be a finite number, got {self.guidance}")
        if self.guidance != 1 and classes is None:
            raise ValueError("guidance needs a class-conditional model; leave out --guidance")
        assert flow.shape is not None
        if self.format == "png" and len(flow.shape) != 3:
            raise ValueError(f"samples of shape {flow.shape} are no images; use --format npz")
        need = self.count * int(np.prod(flow.shape)) * (1 if len(flow.shape) == 3 else 4)
        require_space(self.save_dir, need, f"{self.count:,} samples")


def generate(flow: Flow, job: SampleJob, accelerator: Accelerator) -> dict[str, Any]:
    """Draw what is not there yet, over all processes; the record that went to sampling.json.

    Raises:
        ValueError: the job cannot be done, or the folder holds samples of another setting.
    """
    job.check(flow)
    record = _record(flow, job)
    if accelerator.is_main_process:
        _claim(job.save_dir, record)
    accelerator.wait_for_everyone()
    flow = flow.to(accelerator.device)
    began, counted = time.perf_counter(), CountNFE(flow)
    field = counted if job.guidance == 1 else Guided(counted, job.guidance)
    starts = range(_held(job), job.count, job.batch)
    batches = [range(a, min(a + job.batch, job.count)) for a in starts]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    todo = [b for b in mine if not _done(job, b)]
    bar = None
    if accelerator.is_main_process and sys.stderr.isatty():
        bar = Bar(sum(map(len, todo)), label="sampling")
    calls = 0
    for batch in todo:
        counted.nfe = 0
        x0 = noise(batch, flow.shape or (), stream=job.seed).to(accelerator.device)
        labels = _labels(flow, job, batch)
        cond = labels.to(accelerator.device) if labels is not None else None
        with accelerator.autocast():
            x1 = sample(field, x0, job.solver, cond)
        calls += counted.nfe * len(batch)
        _write(job, batch, x1.float().cpu(), labels)
        if bar is not None:
            bar.advance(len(batch))
    if bar is not None:
        bar.close()
    accelerator.wait_for_everyone()
    drawn = sum(map(len, todo))
    if accelerator.is_main_process:
        record["nfe"] = calls / drawn if drawn else record["nfe"]
        record |= {"seconds": round(time.perf_counter() - began, 3)}
        _finish(flow, job, batches, record)
    accelerator.wait_for_everyone()
    return record


_SAMPLE = re.compile(r"\d{5,}\.png")
_WHAT_MAKES_A_SAMPLE = ("weights", "solver", "seed", "label", "guidance", "format")


def _record(flow: Flow, job: SampleJob) -> dict[str, Any]:
    steps_known = getattr(job.solver, "nfe", None)
    return {
        "version": flowmatch.__version__,
        "weights": job.weights_hash,
        "solver": asdict(job.solver),
        "nfe": steps_known * (2 if job.guidance != 1 else 1) if steps_known else None,
        "seed": job.seed,
        "label": job.label,
        "classes": flow.num_classes,
        "guidance": job.guidance,
        "format": job.format,
    }


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Take a folder for these samples; refuse one that holds others."""
    path = folder / "sampling.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --save_dir")
    if path.exists():
        before = _read_record(path)
        other = [k for k in _WHAT_MAKES_A_SAMPLE if before.get(k) != _json_like(record[k])]
        if other:
            changes = "; ".join(f"{k} was {before.get(k)}, is {record[k]}" for k in other)
            raise ValueError(
                f"{folder} holds samples of another setting ({changes}); choose another --save_dir"
            )
        return
    if folder.is_dir() and any(_SAMPLE.fullmatch(p.name) for p in folder.iterdir()):
        raise ValueError(
            f"{folder} holds images but no sampling.json, so they may not be ours; choose another"
            " --save_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(record, indent=2).encode())


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged; remove it and its samples, or choose another folder")
    return record


def _held(job: SampleJob) -> int:
    """Samples in a finished npz, which are kept; of PNG files each is looked for by its name."""
    path = job.save_dir / "samples.npz"
    if job.format != "npz" or not path.exists():
        return 0
    with np.load(path) as archive:
        return len(archive["samples"])


def _json_like(value: Any) -> Any:
    """What a value becomes when it is written to JSON and read back."""
    return json.loads(json.dumps(value))


def _labels(flow: Flow, job: SampleJob, batch: range) -> Tensor | None:
    if flow.num_classes is None:
        return None
    if job.label is not None:
        return torch.full((len(batch),), job.label)
    return torch.tensor(batch) % flow.num_classes


def _done(job: SampleJob, batch: range) -> bool:
    if job.format == "npz":
        return _part(job, batch).exists()
    return all(_png(job, i).exists() for i in batch)


def _write(job: SampleJob, batch: range, x1: Tensor, labels: Tensor | None) -> None:
    if job.format == "npz":
        values = to_uint8(x1).permute(0, 2, 3, 1) if x1.ndim == 4 else x1
        kept = labels if labels is not None else torch.zeros(0)
        _part(job, batch).parent.mkdir(exist_ok=True)
        partial = _part(job, batch).with_suffix(".partial.npz")
        np.savez(partial, samples=values.numpy(), labels=kept.numpy())
        os.replace(partial, _part(job, batch))
        return
    for i, image in zip(batch, to_uint8(x1).permute(0, 2, 3, 1).numpy(), strict=True):
        partial = _png(job, i).with_suffix(".partial")
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(partial, "png")
        os.replace(partial, _png(job, i))


def _finish(flow: Flow, job: SampleJob, batches: list[range], record: dict[str, Any]) -> None:
    """Join parts, draw the contact sheet, and complete the record."""
    shown = range(min(job.count, 100))
    if job.format == "npz":
        finished = job.save_dir / "samples.npz"
        files = [finished] * finished.exists() + [_part(job, b) for b in batches]
        loaded = [np.load(p) for p in files]
        samples, labels = (np.concatenate([p[k] for p in loaded]) for k in ("samples", "labels"))
        with (job.save_dir / ".samples.partial").open("wb") as file:
            np.savez(file, samples=samples, labels=labels)
        os.replace(job.save_dir / ".samples.partial", job.save_dir / "samples.npz")
        shutil.rmtree(job.save_dir / ".parts", ignore_errors=True)
        first, record["count"] = torch.from_numpy(samples), len(samples)
    else:
        arrays = [np.asarray(Image.open(_png(job, i))) for i in shown]
        first = torch.from_numpy(np.stack(arrays))
        record["count"] = sum(bool(_SAMPLE.fullmatch(p.name)) for p in job.save_dir.iterdir())
    if flow.shape is not None and len(flow.shape) == 3:
        first = first[:100].reshape(-1, *flow.shape[1:], flow.shape[0]).permute(0, 3, 1, 2)
        columns = columns_for(flow.num_classes) if job.label is None else None
        sheet = image_grid(first, columns=columns)
    else:
        sheet = scatter(first)
    sheet.save(job.save_dir / "contact-sheet.png")
    _replace(job.save_dir / "sampling.json", json.dumps(record, indent=2).encode())


def _png(job: SampleJob, i: int) -> Path:
    return job.save_dir / f"{i:05d}.png"


def _part(job: SampleJob, batch: range) -> Path:
    return job.save_dir / ".parts" / f"{batch.start:09d}-{batch.stop:09d}.npz"


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
