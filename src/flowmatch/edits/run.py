"""From a run directory and images to an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowmatch.config import Config
from flowmatch.data import Split
from flowmatch.edits.edit import SHEET, edit
from flowmatch.edits.inputs import Inputs, inputs_from_data, inputs_from_files
from flowmatch.edits.job import EditJob
from flowmatch.facts import model_facts
from flowmatch.flow import Flow
from flowmatch.generation import asked_conditions
from flowmatch.runs import load_flow, open_run, weights_file


def edit_run(
    run_dir: Path,
    job: EditJob,
    images: Sequence[Path],
    *,
    data: Split | None = None,
    count: int | None = None,
    prompts: Sequence[str] = (),
    given: Sequence[str] = (),
    checkpoint: str = "latest",
    weights: str = "ema",
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Edit images with the model of a run; the record that went to edit.json.

    Args:
        run_dir: a run directory of an image model.
        job: what to do. With `data`, restorations degrade the images themselves.
        images: files and folders; none with `data`.
        data: take images of the run's own data, of this split.
        count: how many of `data`; 16 if None (2 to interpolate).
        prompts, given: conditions to edit towards, as of `asked_conditions`.
        checkpoint: "latest", "best", or the path of a checkpoint folder.
        weights: as of `load`: "ema", "model", the name of an average, or a file.
        device: where to compute.
    Raises:
        ValueError: no such run, or a job, images or a model that do not fit each other.
    """
    if (data is None) == (not images):
        raise ValueError("give images, or --data for the run's own; one of the two")
    if count is not None and data is None:
        raise ValueError("--count is for --data; leave it out, or leave out the images")
    if data is not None and job.restores:
        job = replace(job, degrade=True)
    config, folder = open_run(run_dir, checkpoint)
    flow = load_flow(config, weights_file(folder, weights), device=device)
    job.check(flow)
    if prompts or given:
        told = asked_conditions(config, flow, prompts=prompts, given=given)
        job = replace(job, conditions=told)
    inputs = _inputs(flow, config, job, images, data, count)
    facts = model_facts(run_dir, folder, weights, config)
    source = {"data": data} if data is not None else {"files": [str(path) for path in images]}
    return edit(flow, inputs, job, facts={"model": facts, "source": source})


def summary(record: dict[str, Any], job: EditJob) -> str:
    """What was done, in a line or two."""
    means = record["means"]
    lines = [
        f"{_made(record, job)} in {job.out} ({job.task}, {record['nfe']:g} evaluations an"
        f" image, {record['seconds']:.1f} s); see {job.out / SHEET}"
    ]
    if "psnr" in means:
        figures = (f"{name} {_decibels(means[key])}" for name, key in _PSNR)
        lines.append(f"mean PSNR: {', '.join(figures)}")
    if "round_trip_rms" in means:
        lines.append(f"the ends come back with an RMS error of {means['round_trip_rms']:.3g}")
    return "\n".join(lines)


def _made(record: dict[str, Any], job: EditJob) -> str:
    """How many images came out."""
    count = record["count"]
    if job.task == "interpolate":
        return f"{job.length} frames between two images"
    return f"{count:,} image{'' if count == 1 else 's'}"


_PSNR = (("result", "psnr"), ("naive", "psnr_naive"))


def _decibels(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.2f} dB"


def _inputs(
    flow: Flow,
    config: Config,
    job: EditJob,
    images: Sequence[Path],
    data: Split | None,
    count: int | None,
) -> Inputs:
    """The images, of the shape that the task takes: the model's, or that of its measurements."""
    if data is not None:
        usual = 2 if job.task == "interpolate" else 16
        return inputs_from_data(config.data, data, usual if count is None else count)
    assert flow.shape is not None  # the job's check saw to it
    shape = flow.shape
    if job.restores and not job.degrade:
        shape = tuple(job.operator(shape)(torch.zeros(1, *shape)).shape[1:])
    return inputs_from_files(images, shape)
