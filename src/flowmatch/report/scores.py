"""The page's evaluation: tables and pictures of quality, never without the protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from flowmatch.evaluation import glossary
from flowmatch.report.charts import Rule, Series, line_chart
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
from flowmatch.report.numbers import NONE, decimals_for, duration, significant, with_spread
from flowmatch.report.reading import Evaluation, Row, Run
from flowmatch.report.scales import Axis, suited


def scores_section(run: Run) -> Markup:
    """Every file in `evaluation/`, the newest first."""
    parts = [
        paragraph(f"{path.name} cannot be read as an evaluation: {why}.", class_="missing")
        for path, why in run.unreadable.items()
    ]
    for path, evaluation in reversed(run.evaluations.items()):
        parts.append(_evaluation(path, evaluation))
    if not run.evaluations:
        told = "This run has not been evaluated; to do so, run"
        parts.append(missing(told, f"flowmatch evaluate {run.argument}"))
    return section("Evaluation", *parts, name="evaluation")


def metric_names(evaluation: Evaluation, *, memorisation: bool = False) -> list[str]:
    """The metrics of an evaluation, in the order in which they first occur."""
    scored = [r.metrics for r in evaluation.rows] + [a.metrics for a in evaluation.anchors.values()]
    names = dict.fromkeys(name for metrics in scored for name in metrics)
    return [n for n in names if glossary.is_memorisation(n) == memorisation]


def meanings(metrics: Iterable[str]) -> Markup:
    """What each metric is, folded away."""
    told = glossary.explained(metrics).items()
    items = [element("li", join(element("b", name), f": {text}")) for name, text in told]
    summary = element("summary", "What the metrics mean")
    return element("details", summary, element("ul", *items)) if items else Markup()


def best_row(rows: Iterable[Row], metric: str) -> Row | None:
    """The row that scores best on a metric; None where that cannot be said."""
    way = glossary.better(metric)
    scored = [(v, row) for row in rows if (v := _value(row.metrics, metric)) is not None]
    if way is None or not scored:
        return None
    return (min if way == "lower" else max)(scored, key=lambda s: s[0])[1]


def score_table(evaluation: Evaluation, metrics: Sequence[str], label: str) -> Markup:
    """Rows and anchors of an evaluation over some of its metrics; the best of a column is bold.

    What was not scored on any of them is left out.
    """
    rows = [r for r in evaluation.rows if not r.metrics.keys().isdisjoint(metrics)]
    best = {m: best_row(rows, m) for m in metrics} if len(rows) > 1 else {}
    column = {m: decimals_for(r.metrics.get(m) for r in rows) for m in metrics}
    broken = any(row.nonfinite for row in rows)
    head = ["solver", "steps", "NFE", *(glossary.headed(m) for m in metrics), "time"]
    body = [
        [
            row.method,
            f"{row.steps:,}" if row.steps else NONE,
            _count(row.nfe),
            *(_cell(row, m, column[m], bold=best.get(m) is row) for m in metrics),
            NONE if row.seconds is None else duration(row.seconds),
            *([f"{row.nonfinite:,}"] if broken else []),
        ]
        for row in rows
    ]
    for name, anchor in evaluation.anchors.items():
        if anchor.metrics.keys().isdisjoint(metrics):
            continue
        count = f" ({anchor.count:,})" if anchor.count else ""
        cells = [with_spread(anchor.metrics.get(m), None, column[m]) for m in metrics]
        body.append([f"{name}{count}", NONE, NONE, *cells, NONE, *([NONE] if broken else [])])
    anchors = range(len(rows), len(body))
    return table([*head, *(["not finite"] if broken else [])], body, label=label, marked=anchors)


def protocol(evaluation: Evaluation, metric: str | None) -> Markup:
    """The protocol in one line as the best row has it, and all of it folded away below."""
    row = (best_row(evaluation.rows, metric) if metric else None) or evaluation.rows[-1]
    lines = [(r.name, r.protocol) for r in evaluation.rows if r.protocol]
    shown = row.protocol or "the file states none"
    whole = yaml.safe_dump(evaluation.protocol, sort_keys=False, allow_unicode=True)
    rows = [element("li", join(element("b", name), f": {line}")) for name, line in lines]
    return join(
        paragraph(element("b", f"Protocol ({row.name})"), f": {shown}", class_="protocol"),
        element(
            "details",
            element("summary", "The full protocol, and each row’s"),
            element("ul", *rows) if rows else Markup(),
            element("pre", whole) if evaluation.protocol else Markup(),
        ),
    )


def _evaluation(path: Path, evaluation: Evaluation) -> Markup:
    heading = element("h3", path.stem)
    if not evaluation.rows:
        return join(heading, paragraph(f"{path.name} holds no rows.", class_="missing"))
    metrics = metric_names(evaluation)
    spread = (
        "± is the spread over sets of samples. " if any(r.spread for r in evaluation.rows) else ""
    )
    legend = f"{spread}The best of a column is bold; arrows point to the better side"
    marked = "; marked rows are anchors, not samples of this model" if evaluation.anchors else ""
    charts = [chart for m in glossary.drawn(metrics) if (chart := _quality(evaluation, m))]
    return join(
        heading,
        score_table(evaluation, metrics, f"Scores of {path.stem} by solver"),
        protocol(evaluation, glossary.primary(metrics)),
        paragraph(f"{legend}{marked}. {_beside(evaluation)}", class_="note"),
        meanings(metrics),
        element("div", *charts, class_="charts") if charts else Markup(),
    )


def _beside(evaluation: Evaluation) -> str:
    """What must be known besides: the bias of few samples, how bent the flow's paths are."""
    told = []
    count = evaluation.floor.get("count")
    for metric, value in evaluation.floor.items():
        if metric != "count" and value is not None and count:
            told.append(
                f"Of each {metric}, about {significant(value)} is the bias of {count:,.0f} samples:"
                " a perfect model scores that."
            )
    pairs = [f"{name} {significant(value)}" for name, value in evaluation.transport.items()]
    return " ".join([*told, *([f"Of the flow itself: {', '.join(pairs)}."] if pairs else [])])


def _quality(evaluation: Evaluation, metric: str) -> Markup | None:
    """Quality against cost: one line a solver, the held-out data as a dashed line."""
    rows = [r for r in evaluation.rows if r.nfe and _value(r.metrics, metric) is not None]
    if len({r.nfe for r in rows}) < 2:
        return None
    series = []
    methods = {r.method: r.solver or r.method for r in rows}
    short = len(set(methods.values())) == len(methods)  # the solver's kind alone tells them apart
    for i, (method, kind) in enumerate(methods.items()):
        own = sorted((r for r in rows if r.method == method), key=lambda r: r.nfe or 0)
        points = [(r.nfe or 0.0, r.metrics[metric]) for r in own]
        spread = [r.spread.get(metric) for r in own]
        series.append(Series(kind if short else method, points, f"c{i % 6 + 1}", spread, dots=True))
    rules = [
        Rule(name, value)
        for name, anchor in evaluation.anchors.items()
        if "held" in name and (value := _value(anchor.metrics, metric)) is not None
    ]
    values = [v for s in series for _, v in s.points if v is not None]
    y = suited(glossary.headed(metric), values)
    chart = line_chart(
        f"{metric} against network evaluations a sample, one line a solver",
        series,
        x=Axis("network evaluations a sample (NFE, log)", "log"),
        y=y,
        rules=rules,
    )
    way = {"lower": "Lower", "higher": "Higher", None: None}[glossary.better(metric)]
    told = f"{way} and further left is better. " if way else ""
    anchor = "The dashed line is what held-out data score. " if rules else ""
    bars = "Bars: ± spread." if any(v is not None for s in series for v in s.spread) else ""
    return figure(chart, f"{told}{anchor}{bars}") if chart else None


def _cell(row: Row, metric: str, decimals: int | None, *, bold: bool) -> str:
    text = with_spread(row.metrics.get(metric), row.spread.get(metric), decimals)
    return element("b", text) if bold else text


def _count(nfe: float | None) -> str:
    """Adaptive solvers spend a mean that is no whole number."""
    return NONE if nfe is None else f"{nfe:,.1f}" if nfe % 1 else f"{nfe:,.0f}"


def _value(metrics: dict[str, float | None], metric: str) -> float | None:
    value = metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None
