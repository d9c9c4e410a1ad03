"""The picture of `solvers.py`: error against network evaluations, one panel a problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOWN = (  # ours, the like of it elsewhere, label, colour
    ("euler", "diffusers FlowMatchEuler", "Euler", "#7b4fb5"),
    ("heun", "diffusers FlowMatchHeun", "Heun", "#1f77b4"),
    ("dpmpp_2m", "diffusers DPM++ 2M", "DPM-Solver++ 2M", "#2a8f2a"),
    ("unipc", "diffusers UniPC-2", "UniPC-2", "#d62728"),
    ("dopri5", "torchdiffeq dopri5", "Dormand-Prince 5", "#8c564b"),
)
GREY = "#cfcfcf"
LOWEST = 1e-5


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw `rms` over NFE, log-log: some of ours solid, their likes elsewhere dashed, others grey.

    Args:
        results: by problem, with `rms` as `{name: {nfe: distance}}`.
        path: a PNG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(1, len(results), figsize=(10, 5), layout="constrained")
    for ax, (problem, result) in zip(axes, results.items(), strict=True):
        _panel(ax, result["rms"])
        ax.set_title(problem, fontsize=11)
    axes[0].set_ylabel("rms distance from the exact flow map")
    meaning = [
        Line2D([], [], color="#333333", linewidth=2, label="ours"),
        Line2D([], [], color="#333333", linestyle="--", label="the same elsewhere, as it comes"),
        Line2D([], [], color=GREY, label="further solvers, ours and others'"),
    ]
    figure.legend(handles=meaning, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100, format="png")
    plt.close(figure)


def _panel(ax: Any, rms: dict[str, dict[int, float]]) -> None:
    shown = {name for pair in SHOWN for name in pair[:2]}
    for name, row in rms.items():
        if name not in shown and "our times" not in name:
            ax.plot(*_curve(row), color=GREY, linewidth=0.8, zorder=1)
    labels = []
    for ours, theirs, label, color in SHOWN:
        if theirs in rms:
            ax.plot(*_curve(rms[theirs]), "--", color=color, linewidth=1.4, zorder=2)
        x, y = _curve(rms[ours])
        ax.plot(x, y, color=color, linewidth=2, marker="o", markersize=3.5, zorder=3)
        if y:
            labels.append((x[-1], y[-1], label, color))
    ax.set(xscale="log", yscale="log", xlim=(1.9, 900), ylim=(LOWEST / 2, 9))
    ax.set_xlabel("network evaluations (NFE)")
    ticks = [2, 5, 10, 20, 50, 100, 200]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#eeeeee", zorder=0)
    _label(ax, labels)


def _curve(row: dict[int, float]) -> tuple[list[int], list[float]]:
    """Its points from 2 evaluations on and above the lower edge."""
    nfe = sorted(n for n, distance in row.items() if n >= 2 and distance >= LOWEST)
    return nfe, [row[n] for n in nfe]


def _label(ax: Any, labels: list[tuple[int, float, str, str]]) -> None:
    """Write names beside the ends of their lines, at least a line of text apart."""
    low, high = ax.get_ylim()
    line = (high / low) ** (1 / 20)
    ceiling = high
    for x, y, text, color in sorted(labels, key=lambda label: -label[1]):
        at = min(y, ceiling / line)
        ceiling = at
        ax.text(x * 1.1, at, text, color=color, fontsize=9.5, va="center")
