"""The table that is printed: Markdown, so that it can be pasted where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowmatch.evaluation.glossary import headed
from flowmatch.evaluation.protocol import grid_in_words, sentence
from flowmatch.markdown import table

_PRINTED = (
    "fid",
    "fid_excess",
    "fd_dinov2",
    "fd_dinov2_excess",
    "fd_data",
    "fd_data_excess",
    "kid",
    "kd_dinov2",
    "kd_data",
    "is",
    "precision",
    "recall",
    "coverage",
    "class_agreement",
    "nn_ratio",
    "authentic",
    "w2",
    "sliced_w2",
    "mmd2",
    "energy",
    "c2st",
)
"""What is printed, in this order; the JSON file has everything."""


def as_table(document: Mapping[str, Any]) -> str:
    """Solver, steps, NFE, metrics with their spread, seconds; what they are to be read by below."""
    rows: Sequence[Mapping[str, Any]] = document["rows"]
    present = {name for row in rows for name in row["metrics"]}
    names = [name for name in _PRINTED if name in present]
    head = ["solver", "steps", "NFE", *(headed(n) for n in names), "seconds"]
    cells = [_of(row, names) for row in rows]
    for name, anchor in document.get("anchors", {}).items():
        numbers = [_number(anchor["metrics"].get(n), None) for n in names]
        cells.append([f"{name} ({anchor['count']:,})", "", "", *numbers, ""])
    return table([head, *cells])


def notes(document: Mapping[str, Any]) -> list[str]:
    """What must be known to read the table, and its protocol."""
    rows = document["rows"]
    protocol = document["protocol"]
    found = []
    if protocol["samples"]["sets"] > 1:
        sets = protocol["samples"]["sets"]
        found.append(f"± is half the range over {sets} disjoint sets of samples.")
    floor = document.get("floor")
    if floor:
        name, value = next((k, v) for k, v in floor.items() if k != "count")
        found.append(
            f"Of each {name}, about {value:.4g} is the bias of {floor['count']:,} samples: as many"
            " draws of the reference's own Gaussian score that. The excess is what lies above it,"
            " by which sets of different sizes compare roughly."
        )
    if "transport" in document:
        pairs = ", ".join(f"{k} {_number(v, None)}" for k, v in document["transport"].items())
        found.append(f"Of the flow itself, on 100 Euler steps: {pairs}.")
    alone = len(rows) == 1 or not rows[0].get("solver")
    found.append(f"Protocol: {rows[0]['protocol'] if alone else sentence(protocol, None)}")
    return found


def one_line(row: Mapping[str, Any], primary: str) -> str:
    """A row as soon as it is known."""
    steps = f":{row['steps']}" if row.get("steps") else ""
    steps += _grid(row)
    spread = row.get("spread", {}).get(primary)
    number = _number(row["metrics"].get(primary), spread)
    return f"{row['solver']}{steps}  {primary} {number}  ({row['seconds']:,.1f} s a set)"


def _of(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    spread = row.get("spread", {})
    return [
        str(row.get("solver") or "stored") + _grid(row),
        str(row.get("steps") or ""),
        f"{row['nfe']:g}" if row.get("nfe") else "",
        *(_number(row["metrics"].get(n), spread.get(n)) for n in names),
        f"{row['seconds']:,.1f}",
    ]


def _grid(row: Mapping[str, Any]) -> str:
    words = grid_in_words(row.get("time_grid"))
    return f", {words}" if words else ""


def _number(value: float | None, spread: float | None) -> str:
    if value is None:
        return "none"
    text = f"{value:.4g}"
    return text if spread is None else f"{text} ± {spread:.2g}"
