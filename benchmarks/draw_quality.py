"""Quality against evaluations: a figure and a table from what `flowmatch evaluate --json` wrote.

    python benchmarks/draw_quality.py docs/numbers/digits-solvers.json docs/numbers/mnist-solvers.json

A panel and a Markdown table for each file: solvers down, network evaluations across, the deciding
metric in the cells. Solvers on fitted times, or on another grid than the uniform one, are what
`flowmatch tune` chose; they are drawn as stars and make the row "tuned".
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from flowmatch.markdown import table
from flowmatch.solvers import by_name

TUNED = "tuned"
FAMILIES = {
    "Runge-Kutta": ("Blues", ("euler", "midpoint", "heun", "heun3", "rk4")),
    "multistep": ("Greens", ("ab2", "ab3", "dpmpp_2m", "dpmpp_3m", "deis", "unipc")),
    "adds noise": ("Oranges", ("euler_maruyama", "ancestral", "edm_churn", "stochastic_heun")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/images/quality-solvers.png"))
    args = parser.parse_args()
    documents = [json.loads(path.read_text()) for path in args.files]
    figure, panels = plt.subplots(
        1, len(documents), figsize=(6.5 * len(documents), 5), dpi=110, squeeze=False
    )
    for axes, document in zip(panels[0], documents, strict=True):
        lines = by_solver(document)
        print(as_table(document, lines), end="\n\n")
        draw(axes, document, lines)
    panels[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(args.out)


def by_solver(document: dict[str, Any]) -> dict[str, dict[float, dict[str, Any]]]:
    """Rows by solver and evaluations, in the order of the families."""
    lines: dict[str, dict[float, dict[str, Any]]] = defaultdict(dict)
    for row in document["rows"]:
        name = row["solver"] if row["time_grid"] == "uniform" else TUNED
        known = lines[name].get(row["nfe"])
        if known is None or value(row, document) < value(known, document):
            lines[name][row["nfe"]] = row
    order = [name for _, names in FAMILIES.values() for name in names] + [TUNED]
    return {name: dict(sorted(lines[name].items())) for name in order if name in lines}


def metric(document: dict[str, Any]) -> str:
    return next(name for name in document["floor"] if name != "count")


def value(row: dict[str, Any], document: dict[str, Any]) -> float:
    return float(row["metrics"][metric(document)])


def as_table(document: dict[str, Any], lines: dict[str, dict[float, dict[str, Any]]]) -> str:
    """Solvers down, evaluations across; the best of each column is bold."""
    columns = sorted({nfe for rows in lines.values() for nfe in rows})
    best = {
        nfe: min(value(rows[nfe], document) for rows in lines.values() if nfe in rows)
        for nfe in columns
    }
    cells = [["solver", *(f"{nfe:g}" for nfe in columns)]]
    for name, rows in lines.items():
        cells.append([name, *(cell(rows.get(nfe), document, best[nfe]) for nfe in columns)])
    return table(cells)


def cell(row: dict[str, Any] | None, document: dict[str, Any], best: float) -> str:
    if row is None:
        return ""
    number = f"{value(row, document):.3g}"
    return f"**{number}**" if value(row, document) == best else number


def draw(
    axes: plt.Axes, document: dict[str, Any], lines: dict[str, dict[float, dict[str, Any]]]
) -> None:
    for colours, names in FAMILIES.values():
        shades = plt.get_cmap(colours)([0.45 + 0.5 * i / len(names) for i in range(len(names))])
        for name, shade in zip(names, shades, strict=True):
            if name in lines:
                y = [value(row, document) for row in lines[name].values()]
                dashed = "--" if by_name(name).stochastic else "-"
                axes.plot(
                    list(lines[name]), y, dashed, marker="o", ms=3.5, lw=1.3, color=shade, label=name
                )
    if TUNED in lines:
        y = [value(row, document) for row in lines[TUNED].values()]
        axes.plot(list(lines[TUNED]), y, "k*", ms=10, label=TUNED, zorder=5)
    ticks = sorted({nfe for rows in lines.values() for nfe in rows} & {2, 4, 6, 8, 10, 20, 50, 100})
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a sample (NFE)")
    axes.set_ylabel(f"{metric(document)} (lower is better)")
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    samples, reference = document["protocol"]["samples"], document["protocol"]["reference"]
    axes.set_title(
        f"{samples['count']:,} samples against {reference['name']} ({reference['count']:,})",
        fontsize=10,
    )


if __name__ == "__main__":
    main()
