"""The page's cost: what the training took, and how much of the device it used."""

from __future__ import annotations

from typing import Any

from flowmatch.report.html import Markup, missing, paragraph, section, table
from flowmatch.report.numbers import duration, scaled
from flowmatch.report.reading import Run, finite, number


def cost_section(run: Run) -> Markup:
    """Images, time, device, and an estimate of the arithmetic."""
    images = images_seen(run)
    if images is None:
        told = "Nothing is known of this run's cost; training writes it down:"
        return section("Cost", missing(told, run.train_command()), name="cost")
    rows: list[tuple[str, str]] = [("images seen", f"{images:,.0f}")]
    seconds = training_seconds(run)
    if seconds:
        rows.append(("training time", f"{duration(seconds)} (without saving and sampling)"))
        rows.append(("mean rate", f"{images / seconds:,.1f} images/s"))
    starts = [r["started"] for r in run.with_key("started") if isinstance(r["started"], dict)]
    notes = []
    if starts:
        rows += _machine(starts)
        arithmetic = _arithmetic(starts, images, seconds)
        rows += arithmetic
        if arithmetic:
            notes.append(
                "The arithmetic is an estimate: three forward passes an image, a backward pass"
                " counted as two, a multiply-add as two operations; the optimizer and the EMA are"
                " left out."
            )
    else:
        notes.append("The device was not recorded: this run was trained by an older version.")
    return section(
        "Cost",
        table([], rows, label="Cost of the training"),
        *(paragraph(note, class_="note") for note in notes),
        name="cost",
    )


def images_seen(run: Run) -> float | None:
    """Images that the training has seen, by its metrics or else its newest checkpoint."""
    logged = [n for r in run.records if (n := number(r, "images")) is not None]
    if run.checkpoint is not None:
        logged.append(float(run.checkpoint[1]))
    return max(logged, default=None)


def training_seconds(run: Run) -> float | None:
    """Seconds of training over all starts, as logged or else from the rates."""
    logged = [s for r in run.records if (s := number(r, "seconds")) is not None]
    if logged:
        return logged[-1]
    total, before = 0.0, 0.0
    for record in run.with_key("images_per_second"):
        rate, images = number(record, "images_per_second"), number(record, "images")
        if rate and images is not None:
            total += (images - before) / rate
            before = images
    return total or None


def _machine(starts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    last = starts[-1]
    rows: list[tuple[str, str]] = [
        (key, str(last[key])) for key in ("device", "processes", "precision") if key in last
    ]
    if "threads" in last:
        rows.append(("CPU threads a process", str(last["threads"])))
    if len(starts) > 1:
        same = "" if _alike(starts) else ", not all on the same device: the last is shown"
        rows.append(("starts", f"{len(starts)}{same}"))
    return rows


def _alike(starts: list[dict[str, Any]]) -> bool:
    keys = ("device", "processes", "precision", "threads")
    return all(s.get(k) == starts[0].get(k) for s in starts for k in keys)


def _arithmetic(
    starts: list[dict[str, Any]], images: float, seconds: float | None
) -> list[tuple[str, str]]:
    """Operations in all, a second, and against what the device does on one matrix product."""
    last = starts[-1]
    forward = finite(last.get("forward_flops_per_image"))
    if not forward:
        return []
    total = 3 * forward * images
    rows = [
        ("one forward pass", f"{scaled(forward, 'FLOP')} an image"),
        ("training (estimate)", scaled(total, "FLOP")),
    ]
    if not seconds:
        return rows
    rows.append(("achieved (estimate)", scaled(total / seconds, "FLOP/s")))
    peak, processes = (
        finite(last.get("matmul_flops_per_second")),
        finite(last.get("processes")) or 1,
    )
    if peak and _alike(starts):  # a share of several different devices would mean nothing
        share = total / seconds / (peak * processes)
        each = f"{processes:,.0f} × " if processes > 1 else ""
        of = f"of a measured matrix multiplication ({each}{scaled(peak, 'FLOP/s')})"
        rows.append(("utilisation", f"{100 * share:.1f}% {of}"))
    return rows
