"""What belongs to a table to look at: the samples of a row, and quality against cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from PIL import Image

from flowmatch.evaluation.extraction import SampleSet
from flowmatch.evaluation.protocol import OWN_TIMES, grid_in_words
from flowmatch.pictures import columns_for, figure_image, image_grid

_SHOWN = 100


def sample_grid(samples: SampleSet, turn: int | None) -> Image.Image:
    """The first hundred samples of a set, whose classes take `turn` samples to come again.

    Where these are few, each class is a column.
    """
    return image_grid(samples.samples[:_SHOWN], columns=columns_for(turn))


def _line(row: Mapping[str, Any]) -> str:
    """The line that a row is a point of; solvers on times of their own, as tuned, make one."""
    grid = grid_in_words(row.get("time_grid"))
    if grid == OWN_TIMES:
        return OWN_TIMES
    told = [grid] if grid else []
    told += ["bare end"] if row.get("safe_end") is False else []
    return f"{row['solver']} ({', '.join(told)})" if told else str(row["solver"])


def quality_against_nfe(document: Mapping[str, Any], primary: str) -> Image.Image | None:
    """The deciding metric against network evaluations a sample, one line a solver; None if empty.

    Of a Frechet distance the excess is drawn: held-out data are fewer than samples, and only the
    excess compares sets of different sizes.
    """
    import matplotlib.pyplot as plt

    rows = document["rows"]
    excess = f"{primary}_excess"
    metric = excess if all(excess in row["metrics"] for row in rows) else primary
    lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in rows:
        value = row["metrics"].get(metric)
        if value is not None and math.isfinite(value) and row.get("nfe"):
            lines[_line(row)].append((row["nfe"], value, row.get("spread", {}).get(metric, 0)))
    if not lines:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=120)
    axes.set_prop_cycle(color=plt.get_cmap("tab10" if len(lines) <= 10 else "tab20").colors)
    for name, points in lines.items():
        nfe, value, spread = zip(*sorted(points), strict=True)
        axes.errorbar(nfe, value, yerr=spread, marker="o", ms=4, capsize=3, lw=1.5, label=name)
    anchor = document.get("anchors", {}).get("held-out data")
    if anchor is not None:
        level, count = anchor["metrics"][metric], anchor["count"]
        axes.axhline(level, color="0.4", ls="--", lw=1, label=f"held-out data ({count:,})")
    ticks = sorted({row["nfe"] for row in rows if row.get("nfe")})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_xlabel("network evaluations a sample (NFE)")
    axes.set_ylabel(f"{metric} (lower is better)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    samples, reference = document["protocol"]["samples"], document["protocol"]["reference"]
    sets = f" x {samples['sets']} sets" if samples["sets"] > 1 else ""
    axes.set_title(
        f"{samples['count']:,} samples{sets} against {reference['name']} ({reference['count']:,})",
        fontsize=10,
    )
    figure.tight_layout()
    picture = figure_image(figure)
    plt.close(figure)
    return picture
