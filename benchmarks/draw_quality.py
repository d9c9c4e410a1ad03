"""Quality against evaluations: a figure and a table from what `flowmatch evaluate --json` wrote.

    python benchmarks/draw_quality.py docs/numbers/{digits,mnist}-solvers.json

A panel and a Markdown table for each file: solvers down, network evaluations across, the deciding
metric in the cells. `X-tuned-trajectories.json` and `X-tuned-samples.json` beside an `X.json` hold
what `flowmatch tune` chose by each judge (`evaluate --solvers auto:N`); they become stars and rows.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, ScalarFormatter

from flowmatch.markdown import table
from flowmatch.solvers import by_name

BUDGETS = (2, 4, 6, 8, 10, 20, 50, 100)
JUDGES = {"trajectories": "k*", "samples": "r*"}  # how each judge's choices are marked
FAMILIES = {
    "Runge-Kutta": ("Blues", ("euler", "midpoint", "heun", "ralston", "heun3", "rk4")),
    "multistep": ("Greens", ("ab2", "ab3", "dpmpp_2m", "dpmpp_3m", "deis", "unipc")),
    "adds noise": ("Oranges", ("euler_maruyama", "ancestral", "edm_churn", "stochastic_heun")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/images/quality-solvers.png"))
    args = parser.parse_args()
    figure, panels = plt.subplots(
        1, len(args.files), figsize=(6.5 * len(args.files), 5), dpi=110, squeeze=False
    )
    for axes, path in zip(panels[0], args.files, strict=True):
        document = json.loads(path.read_text())
        lines = by_solver(document) | tuned(path)
        print(as_table(document, lines), end="\n\n")
        draw(axes, document, lines)
    named = {}
    for axes in panels[0]:
        named |= {
            label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    figure.tight_layout()
    options = {"frameon": False, "fontsize": 8, "loc": "center left", "bbox_to_anchor": (1, 0.5)}
    figure.legend(named.values(), named.keys(), **options)
    figure.savefig(args.out, bbox_inches="tight")


def by_solver(document: dict[str, Any]) -> dict[str, dict[float, dict[str, Any]]]:
    """Rows by solver and evaluations, in the order of the families."""
    lines: dict[str, dict[float, dict[str, Any]]] = defaultdict(dict)
    for row in sorted(document["rows"], key=lambda row: row["nfe"]):
        lines[row["solver"]][row["nfe"]] = row
    order = [name for _, names in FAMILIES.values() for name in names]
    return {name: lines[name] for name in order if name in lines}


def tuned(path: Path) -> dict[str, dict[float, dict[str, Any]]]:
    """What each judge chose, one row a budget, from the documents beside `path`."""
    lines = {}
    for judge in JUDGES:
        beside = path.with_name(f"{path.stem}-tuned-{judge}.json")
        if beside.exists():
            rows = json.loads(beside.read_text())["rows"]
            lines[tuned_by(judge)] = {
                row["nfe"]: row for row in sorted(rows, key=lambda row: row["nfe"])
            }
    return lines


def tuned_by(judge: str) -> str:
    return f"tuned by {judge}"


def metric(document: dict[str, Any]) -> str:
    return next(name for name in document["floor"] if name != "count")


def value(row: dict[str, Any], document: dict[str, Any]) -> float:
    return float(row["metrics"][metric(document)])


def as_table(document: dict[str, Any], lines: dict[str, dict[float, dict[str, Any]]]) -> str:
    """Solvers down, budgets across; the best of each column is bold, smaller numbers are named."""
    within = {
        name: {next(b for b in BUDGETS if nfe <= b): row for nfe, row in rows.items()}
        for name, rows in lines.items()
    }
    columns = sorted({budget for rows in within.values() for budget in rows})
    best = {b: min(value(row[b], document) for row in within.values() if b in row) for b in columns}
    cells = [["solver", *map(str, columns)]]
    for name, rows in within.items():
        cells.append([name, *(cell(rows.get(b), document, b, best[b]) for b in columns)])
    return table(cells)


def cell(row: dict[str, Any] | None, document: dict[str, Any], budget: int, best: float) -> str:
    if row is None:
        return ""
    number = f"{value(row, document):.3g}"
    number = f"**{number}**" if value(row, document) == best else number
    return number if row["nfe"] == budget else f"{number} ({row['nfe']:g})"


def draw(
    axes: plt.Axes, document: dict[str, Any], lines: dict[str, dict[float, dict[str, Any]]]
) -> None:
    def line(name: str, style: str, **options: Any) -> None:
        if name in lines:
            y = [value(row, document) for row in lines[name].values()]
            axes.plot(list(lines[name]), y, style, label=name, **options)

    for colours, names in FAMILIES.values():
        shades = plt.get_cmap(colours)([0.45 + 0.5 * i / len(names) for i in range(len(names))])
        for name, shade in zip(names, shades, strict=True):
            line(name, "o--" if by_name(name).stochastic else "o-", ms=3.5, lw=1.3, color=shade)
    for judge, style in JUDGES.items():
        line(tuned_by(judge), style, ms=10, zorder=5)
    ticks = sorted({nfe for rows in lines.values() for nfe in rows} & {*BUDGETS})
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a sample (NFE)")
    axes.set_ylabel(f"{metric(document)} (lower is better)")
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    samples, reference = document["protocol"]["samples"], document["protocol"]["reference"]
    axes.set_title(
        f"{samples['count']:,} samples against {reference['name']} ({reference['count']:,})",
        fontsize=10,
    )


if __name__ == "__main__":
    main()
