"""The page's questions to the samples: are they copies, and are they of the class asked for?"""

from __future__ import annotations

from flowmatch.evaluation import glossary
from flowmatch.report.charts import bar_chart
from flowmatch.report.html import (
    Markup,
    element,
    figure,
    join,
    missing,
    paragraph,
    section,
    table,
)
from flowmatch.report.numbers import NONE
from flowmatch.report.reading import Classes, Evaluation, Run
from flowmatch.report.scores import best_row, meanings, metric_names, protocol, score_table

_MOST_BARS = 40


def copies_section(run: Run) -> Markup:
    """Memorisation and classes, of each evaluation that asked; the newest first."""
    parts = []
    for path, evaluation in reversed(run.evaluations.items()):
        if not evaluation.rows:
            continue
        metric = glossary.primary(metric_names(evaluation))
        row = (best_row(evaluation.rows, metric) if metric else None) or evaluation.rows[-1]
        classes = _classes(evaluation.classes or row.classes, row.name)
        found = [*_memorisation(evaluation), *classes]
        if found:
            parts.append(join(element("h3", path.stem), *found, protocol(evaluation, metric)))
    if not parts:
        told = "No evaluation compares samples with the training data or with their classes; run"
        parts.append(missing(told, f"flowmatch evaluate {run.argument}"))
    return section("Memorisation and classes", *parts, name="memorisation")


def _memorisation(evaluation: Evaluation) -> list[Markup]:
    metrics = metric_names(evaluation, memorisation=True)
    if not metrics:
        return []
    told = (
        "A model that copies makes samples nearer to its training data than unseen data are: read"
        " each number beside the held-out data’s."
    )
    return [
        score_table(evaluation, metrics, "Nearness to the training data by solver"),
        paragraph(told, class_="note"),
        meanings(metrics),
    ]


def _classes(classes: Classes | None, made_by: str) -> list[Markup]:
    if classes is None or not classes.recognised_share:
        return []
    shares = classes.recognised_share
    shown = list(range(len(shares)))
    caption = f"Share of the samples of each class that a classifier recognises as it ({made_by})"
    if len(shares) > _MOST_BARS:
        shown = sorted(shown, key=lambda k: shares[k] or 0.0)[:_MOST_BARS]
        caption = f"{caption}; of {len(shares):,} classes the {_MOST_BARS} least recognised"
    bars = bar_chart(caption, [shares[k] for k in shown], [str(k) for k in shown])
    rows = [
        [
            str(k),
            _count(classes.requested, k),
            _share(shares[k]),
            _count(classes.predicted_counts, k),
        ]
        for k in shown
    ]
    head = ["class", "asked for", "recognised", "taken for it"]
    counts = element(
        "details",
        element("summary", "The numbers by class"),
        table(head, rows, label="Recognised classes"),
    )
    return [element("div", figure(bars, f"{caption}."), class_="charts"), counts]


def _count(counts: list[int | None], index: int) -> str:
    count = counts[index] if index < len(counts) else None
    return NONE if count is None else f"{count:,}"


def _share(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}%"
