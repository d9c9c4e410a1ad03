"""Tables: a row for each solver of a flow, or one for samples that are there already."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmatch.evaluation.anchors import add_anchors
from flowmatch.evaluation.document import Document
from flowmatch.evaluation.pictures import quality_against_nfe, sample_grid
from flowmatch.evaluation.preparation import shown
from flowmatch.evaluation.protocol import digest, versions
from flowmatch.evaluation.scores import ImageScores, PointScores, Scores
from flowmatch.evaluation.stored import Stored
from flowmatch.evaluation.sweep import (
    FlowSamples,
    StoredSamples,
    Sweep,
    measure_row,
    solver_facts,
    transport,
)
from flowmatch.evaluation.table import one_line
from flowmatch.flow import Flow
from flowmatch.guidance import Guidance
from flowmatch.solvers import GridSolver, Solver

if TYPE_CHECKING:
    from accelerate import Accelerator

    from flowmatch.evaluation.extraction import SampleSet


def evaluate_flow(
    flow: Flow,
    solvers: Sequence[Solver],
    sweep: Sweep,
    scores: Scores,
    accelerator: Accelerator,
    *,
    model: dict[str, Any],
    own_field: str | None = None,
    weak: Flow | None = None,
    out: Path | None = None,
    json_file: Path | None = None,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """A row for each solver, written as soon as it is known; the document.

    Args:
        flow: the model, on the accelerator's device.
        model: what the protocol says of it: name, weights, hash, field, step, images seen.
        own_field: the field of the run's own config, which older files mean that name none.
        weak: the weak model of autoguidance, on the same device; None without one.
        out: folder for the JSON file and the pictures; None writes no pictures.
        json_file: where the JSON goes instead.
        say: told each row, by its name.
    """
    protocol = protocol_of(scores, sweep, accelerator, model, flow)
    scores.warn_about(sweep.count)
    stem = _stem(protocol)
    path = json_file or (out / f"{stem}.json" if out else None)
    document = Document(path, protocol, unsaid={"model.field": own_field})
    todo = [s for s in solvers if not document.has(solver_facts(s))]
    if len(todo) < len(solvers):
        say(f"{len(solvers) - len(todo)} of {len(solvers)} rows are there already")
    work = sum(_calls(s) for s in todo) * sweep.count * sweep.repeats
    with shown("evaluating", work, accelerator) as advance:
        for solver in todo:
            subject = FlowSamples(flow, solver, sweep, accelerator, weak=weak)
            row, first = measure_row(subject, sweep, scores, accelerator, progress=advance)
            row = solver_facts(solver) | row
            if accelerator.is_main_process:
                _tell_nonfinite(row, sweep)
                if out is not None and isinstance(scores, ImageScores):
                    row["grid"] = _save_grid(first, row, out, stem, flow, sweep)
                document.add(row)
                say(one_line(row, scores.primary))
            accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _finish(document, flow, sweep, scores, out, stem)
    accelerator.wait_for_everyone()
    return document.content


def evaluate_stored(
    stored: Stored,
    sweep: Sweep,
    scores: Scores,
    accelerator: Accelerator,
    *,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """The one row of samples that are there already; the document."""
    content = hashlib.sha256(stored.x.contiguous().numpy().tobytes()).hexdigest()[:12]
    model: dict[str, Any] = {"name": stored.name, "hash": content}
    if stored.record is not None:
        model["sampling"] = stored.record
    protocol = protocol_of(scores, sweep, accelerator, model, None)
    scores.warn_about(sweep.count)
    document = Document(json_file, protocol)
    facts = {"solver": None, "steps": None}
    if not document.has(facts):
        subject = StoredSamples(stored, accelerator.device)
        row, _ = measure_row(subject, sweep, scores, accelerator)
        if accelerator.is_main_process:
            _tell_nonfinite(row, sweep)
            document.add(facts | row)
    if accelerator.is_main_process:
        add_anchors(document.content, scores)
        document.write()
    accelerator.wait_for_everyone()
    return document.content


def protocol_of(
    scores: Scores,
    sweep: Sweep,
    accelerator: Accelerator,
    model: dict[str, Any],
    flow: Flow | None,
) -> dict[str, Any]:
    """What all rows of a table have in common; `flow` is None for stored samples."""
    precision = accelerator.mixed_precision
    labels = None
    if flow is not None and flow.decoder is not None:
        model = {**model, "autoencoder": flow.decoder.weights}
    if flow is not None:
        labels = sweep.conditions(flow).title
    return {
        **scores.describe(),
        "samples": {
            "count": sweep.count,
            "sets": sweep.repeats,
            "seed": sweep.seed if flow is not None else None,
            "labels": labels,
            "as": "uint8" if isinstance(scores, ImageScores) else "float32",
        },
        "guidance": _guidance(sweep.guidance) if flow is not None else None,
        "model": model,
        "precision": "fp32" if precision == "no" else precision,
        "versions": versions(),
    }


def _guidance(guidance: Guidance) -> float | str:
    """A plain scale as a number, anything more in words."""
    return guidance.scale if guidance == Guidance(scale=guidance.scale) else guidance.name


def _stem(protocol: dict[str, Any]) -> str:
    """A file name that differs where the protocol does."""
    kind, step = protocol["features"]["kind"], protocol["model"].get("step")
    at = f"step{step:07d}-" if step is not None else ""
    named = protocol["model"]
    # a run may be called by another path: what it is, its weights' hash says
    nameless = {**protocol, "model": {k: v for k, v in named.items() if k != "name"}}
    return f"{at}{kind}-{protocol['samples']['count']}-{digest(nameless)}"


def _tell_nonfinite(row: dict[str, Any], sweep: Sweep) -> None:
    if row["nonfinite"]:
        warnings.warn(
            f"{row['nonfinite']:,} of {sweep.count * sweep.repeats:,} samples of"
            f" {row.get('solver') or 'the set'} hold NaN or infinite values; they were counted, and"
            " evaluated as black images (points: no number is given)",
            stacklevel=2,
        )


def _save_grid(
    samples: SampleSet, row: dict[str, Any], out: Path, stem: str, flow: Flow, sweep: Sweep
) -> str:
    """Draw the first samples of a row; the file's name, relative to the JSON's usual place."""
    bare = "bare" if row["safe_end"] is False else None
    plain = row["time_grid"] in ("uniform", "adaptive") and "options" not in row
    other = None if plain else digest({k: row.get(k) for k in ("time_grid", "options")})
    parts = (stem, row["solver"], row["steps"], bare, other)
    name = "-".join(str(part) for part in parts if part) + ".png"
    out.mkdir(parents=True, exist_ok=True)
    sample_grid(samples, sweep.conditions(flow).turn).save(out / name)
    return name


def _finish(
    document: Document, flow: Flow, sweep: Sweep, scores: Scores, out: Path | None, stem: str
) -> None:
    """What belongs to the whole table: anchors, path energy, the picture."""
    document.rows.sort(key=lambda row: (row["solver"], row["nfe"] or 0))
    if isinstance(scores, PointScores):
        document.content["transport"] = transport(flow, sweep)
    add_anchors(document.content, scores)
    if out is not None and document.rows:
        out.mkdir(parents=True, exist_ok=True)
        picture = quality_against_nfe(document.content, scores.primary)
        if picture is not None:
            picture.save(out / f"{stem}.png")
    document.write()


def _calls(solver: Solver) -> int:
    """Network evaluations a sample, as far as they are known beforehand: for the progress bar."""
    return solver.nfe if isinstance(solver, GridSolver) else 100
