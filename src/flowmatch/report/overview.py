"""The page's head: what the run is, how far it came, and its one number."""

from __future__ import annotations

from flowmatch.config import Config
from flowmatch.data import Latent
from flowmatch.evaluation import glossary
from flowmatch.report.html import Markup, element, join, missing, paragraph
from flowmatch.report.numbers import NONE, scaled, significant, with_spread
from flowmatch.report.reading import Evaluation, Row, Run, number
from flowmatch.report.scores import best_row, metric_names


def overview(run: Run) -> Markup:
    """The page's header."""
    facts = element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", text))
            for name, text in _facts(run).items()
        ),
    )
    headline = _headline(run) or _reduced_headline(run)
    if headline is None:
        told = "No number yet: to measure this run, use"
        headline = missing(told, f"flowmatch evaluate {run.argument}")
    kicker = paragraph("flowmatch run", class_="kicker")
    return element("header", kicker, element("h1", run.name), facts, headline)


def _facts(run: Run) -> dict[str, str]:
    config, network = run.config, run.config.network
    data = config.data
    kind = f"latents of {data.images.kind}" if isinstance(data, Latent) else data.kind
    shape = f", {' × '.join(map(str, run.shape))}" if run.shape else ""
    classes = f", {network.num_classes:,} classes" if network.num_classes else ""
    size = f", {scaled(run.parameters)} parameters" if run.parameters else ""
    reached = NONE
    if run.checkpoint is not None:
        step, images = run.checkpoint
        reached = f"step {step:,} of {config.train.total_steps:,}, {images:,} images"
    return {
        "Data": f"{kind}{shape}{classes}",
        "Network": f"{network.kind}{size}",
        "Path": config.path.kind,
        "Predicts": _predicted(config),
        "Last checkpoint": reached,
    }


def _predicted(config: Config) -> str:
    if isinstance(config.predict, str):
        return config.predict
    return f"preconditioned (sigma_data {config.predict.sigma_data:g})"


def _headline(run: Run) -> Markup | None:
    """The best row of the evaluation on the most samples, the newest of those, that can rank."""
    by_size = sorted(run.evaluations.items(), key=lambda item: _samples(item[1]))
    for path, evaluation in reversed(by_size):
        metric = glossary.primary(metric_names(evaluation))
        row = best_row(evaluation.rows, metric) if metric else None
        if metric is None or row is None:
            continue
        value = with_spread(row.metrics[metric], row.spread.get(metric))
        others = f", the best of {len(evaluation.rows)}" if len(evaluation.rows) > 1 else ""
        cost = f", {row.nfe:,.0f} network evaluations a sample" if row.nfe else ""
        beside = _beside(evaluation, row, metric)
        told = f"{row.name}{cost}{others}; evaluation {path.stem}.{beside}"
        return _number(glossary.headed(metric), value, told, row.protocol)
    return None


def _beside(evaluation: Evaluation, row: Row, metric: str) -> str:
    """What real held-out data score; by the excess, if there is one: they are fewer images."""
    excess = f"{metric}_excess"
    by = excess if row.metrics.get(excess) is not None else metric
    anchors = [
        f"{name} {significant(value)}"
        for name, anchor in evaluation.anchors.items()
        if "held" in name and (value := anchor.metrics.get(by)) is not None
    ]
    if not anchors:
        return ""
    listed, ours = ", ".join(anchors), row.metrics[by]
    if by == excess and ours is not None:
        return f" Above the bias of so few samples: {significant(ours)}; {listed}."
    return f" For comparison: {listed}."


def _samples(evaluation: Evaluation) -> int:
    """How many samples the numbers of an evaluation rest on."""
    samples = evaluation.protocol.get("samples")
    if not isinstance(samples, dict):
        return 0
    return int(samples.get("count") or 0) * int(samples.get("sets") or 1)


def _reduced_headline(run: Run) -> Markup | None:
    """The best evaluation during training, said to be reduced."""
    scored = []
    for record in run.with_key("evaluation"):
        evaluation = record["evaluation"]
        metric = evaluation.get("primary") if isinstance(evaluation, dict) else None
        value = number(record, "evaluation", "metrics", str(metric))
        if value is not None:
            scored.append((value, str(metric), record))
    if not scored:
        return None
    value, metric, record = min(scored, key=lambda s: s[0])
    told = (
        f"reduced: {number(record, 'evaluation', 'num_samples') or 0:,.0f} samples, at step"
        f" {number(record, 'step') or 0:,.0f}, the best of {len(scored)} evaluations during"
        " training."
    )
    protocol = str(record["evaluation"].get("protocol", ""))
    return _number(f"{metric} ↓", significant(value), told, protocol)


def _number(name: str, value: str, told: str, protocol: str) -> Markup:
    stated = join(element("b", "Protocol"), f": {protocol or 'the file states none'}")
    return element(
        "div",
        paragraph(element("span", name, class_="name"), " ", element("strong", value)),
        paragraph(told),
        paragraph(stated, class_="protocol"),
        class_="headline",
    )
