"""Doing an editing job: images edited in batches, written, and a record of how."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

import flowmatch
from flowmatch.editing import interpolate, sdedit
from flowmatch.edits.inputs import Inputs
from flowmatch.edits.job import EditJob
from flowmatch.flow import Cond, Flow
from flowmatch.guidance import CountNFE
from flowmatch.metrics.psnr import psnr
from flowmatch.pictures import image_grid
from flowmatch.randomness import keyed_generator
from flowmatch.room import require_writable
from flowmatch.tensors import from_uint8, to_uint8
from flowmatch.training.tracking import Bar

SHEET, RECORD = "contact-sheet.png", "edit.json"
_ROWS = 32
"""Images on the sheet; of more, the first so many."""


class Edited(NamedTuple):
    """What came of some images, all uint8 [N, C, H, W]."""

    columns: list[Tensor]
    """What the sheet shows beside each other, the result among them."""
    result: Tensor
    facts: list[dict[str, Any]]
    """What the record says of each image."""


def edit(
    flow: Flow, inputs: Inputs, job: EditJob, *, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Edit images and write the results, a sheet and a record; the record.

    Args:
        flow: the model, on the device to compute on.
        inputs: the images, of the shape that the task takes.
        job: what to do with them.
        facts: what else the record says, e.g. of the weights.
    Raises:
        ValueError: the job cannot be done, or would overwrite files.
    """
    job.check(flow)
    names = _names(inputs, job)
    _check_room(job.out, names)
    began = time.perf_counter()
    counted, device = CountNFE(flow), next(flow.parameters()).device
    parts, calls = [], 0
    bar = Bar(len(inputs.x), label=job.task) if sys.stderr.isatty() else None
    for rows in _batches(len(inputs.x), job):
        counted.nfe = 0
        parts.append(_EDITS[job.task](counted, flow, inputs.x[rows.start : rows.stop], rows, job))
        calls += counted.nfe * len(rows)
        if bar is not None:
            bar.advance(len(rows))
    if bar is not None:
        bar.close()
    record = {
        "version": flowmatch.__version__,
        **(facts or {}),
        "task": job.task,
        "options": job.options,
        "settings": _settings(job),
        "seed": job.seed,
        "label": job.label,
        "conditions": None if job.conditions is None else dict(job.conditions.facts),
        "nfe": calls / len(inputs.x),
        "device": device.type,
        "seconds": round(time.perf_counter() - began, 3),
        **_summary([fact for part in parts for fact in part.facts], inputs),
    }
    _write(job.out, names, parts, record)
    return record


def _restore(field: CountNFE, flow: Flow, x: Tensor, rows: range, job: EditJob) -> Edited:
    """Measurements to images: with `degrade` the measurements are taken of `x`."""
    assert flow.shape is not None
    device = next(flow.parameters()).device
    operator, y = job.operator(flow.shape), x.to(device)
    if job.degrade:
        y = operator(y)
        if job.noise:
            keys = (("measurement", job.seed, i) for i in rows)
            noises = [torch.randn(y.shape[1:], generator=keyed_generator(*key)) for key in keys]
            y = y + job.noise * torch.stack(noises).to(device)
        y = from_uint8(to_uint8(y))  # as a file would hold it
    if job.task == "inpaint":
        y = operator(y)  # whatever is where nothing is known
    method = job.restoration()
    x1 = method(field, y, operator, _cond(job, rows, device), seeds=rows, stream=job.seed)
    shown, naive, result = (to_uint8(v).cpu() for v in (operator.shown(y), operator.naive(y), x1))
    misfit = (operator(x1) - y).square().flatten(1).mean(1).sqrt().tolist()
    facts: list[dict[str, Any]] = [{"misfit_rms": value} for value in misfit]
    if not job.degrade:
        return Edited([shown, naive, result], result, facts)
    truth = to_uint8(x)
    for name, image in (("psnr", result), ("psnr_naive", naive)):
        values = psnr(from_uint8(image), from_uint8(truth)).tolist()
        for fact, value in zip(facts, values, strict=True):
            fact[name] = value if math.isfinite(value) else None  # JSON has no infinity
    return Edited([shown, naive, result, truth], result, facts)


def _sdedit(field: CountNFE, flow: Flow, x: Tensor, rows: range, job: EditJob) -> Edited:
    assert job.strength is not None
    x = x.to(next(flow.parameters()).device)
    cond = _cond(job, rows, x.device)
    x1 = sdedit(field, x, job.strength, job.solver(), cond, seeds=rows, stream=job.seed)
    result = to_uint8(x1).cpu()
    return Edited([to_uint8(x).cpu(), result], result, [{} for _ in rows])


def _interpolate(field: CountNFE, flow: Flow, x: Tensor, rows: range, job: EditJob) -> Edited:
    x = x.to(next(flow.parameters()).device)
    cond = _cond(job, rows[:1], x.device)
    row = interpolate(field, x[:1], x[1:], job.length, job.solver(), cond)[0]
    error = (row[[0, -1]] - x).square().flatten(1).mean(1).sqrt().tolist()
    result = to_uint8(row).cpu()
    facts = [{"round_trip_rms": value} for value in error]
    return Edited(list(result.split(1)), result, facts)  # type: ignore[no-untyped-call]


_EDITS = {
    "inpaint": _restore,
    "superresolve": _restore,
    "deblur": _restore,
    "colourise": _restore,
    "sdedit": _sdedit,
    "interpolate": _interpolate,
}


def _batches(count: int, job: EditJob) -> list[range]:
    """The images of each batch; a pair to interpolate, and one for dflow, which takes no more."""
    size = {"interpolate": 2}.get(job.task, 1 if job.method == "dflow" else job.batch)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _cond(job: EditJob, rows: range, device: torch.device) -> Cond | None:
    """What some images are edited towards."""
    told = None if job.conditions is None else job.conditions(rows, device)
    if job.label is None:
        return told
    return {**(told or {}), "label": torch.full((len(rows),), job.label, device=device)}


def _names(inputs: Inputs, job: EditJob) -> list[str]:
    """The files of the results."""
    if job.task != "interpolate":
        if twice := [name for name, count in Counter(inputs.names).items() if count > 1]:
            raise ValueError(
                f"two images are called {twice[0]}, and so would their results; rename one of them"
            )
        return [f"{name}.png" for name in inputs.names]
    if len(inputs.names) != 2:
        raise ValueError(f"interpolate goes between two images, got {len(inputs.names)}")
    return [f"{'-'.join(inputs.names)}-{i:02d}.png" for i in range(job.length)]


def _check_room(folder: Path, names: list[str]) -> None:
    """Make the folder, and refuse one that holds what would be written."""
    if SHEET in names:
        raise ValueError(f"an image is called {SHEET}, as the sheet of all is; rename it")
    require_writable(folder)
    there = next((name for name in [*names, SHEET, RECORD] if (folder / name).exists()), None)
    if there is not None:
        raise ValueError(f"{folder / there} exists, and nothing is overwritten; choose another -o")


def _settings(job: EditJob) -> dict[str, Any]:
    """How it was done: the method and the noise that it reckons with, or the solver."""
    if not job.restores:
        return {"solver": asdict(job.solver())}
    noise = {"degraded": bool(job.degrade), "noise": job.noise or 0.0, "sigma_y": job.sigma_y}
    return {"method": asdict(job.restoration()), **noise}


def _summary(facts: list[dict[str, Any]], inputs: Inputs) -> dict[str, Any]:
    """The figures of each image, and the means of those that all images have."""
    every = [{"name": n, **fact} for n, fact in zip(inputs.names, facts, strict=True)]
    means = {}
    for key in facts[0]:
        values = [fact[key] for fact in facts]
        means[key] = None if None in values else sum(values) / len(values)
    return {"count": len(every), "means": means, "images": every}


def _write(folder: Path, names: list[str], parts: list[Edited], record: dict[str, Any]) -> None:
    """Images, sheet and record; the record last, so that it stands for all."""
    results = torch.cat([part.result for part in parts])
    for name, image in zip(names, results.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / name)
    columns = [
        torch.cat(column)[:_ROWS] for column in zip(*(p.columns for p in parts), strict=True)
    ]
    sheet = image_grid(torch.stack(columns, 1).flatten(0, 1), columns=len(columns), smallest=56)
    sheet.save(folder / SHEET)
    (folder / RECORD).write_text(json.dumps(record, indent=2))
