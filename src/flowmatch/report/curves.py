"""The page's training curves, from metrics.jsonl, each with a sentence on how to read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowmatch.evaluation import glossary
from flowmatch.report.charts import Series, line_chart, lines_a_point
from flowmatch.report.html import Markup, element, figure, join, missing, paragraph, section, table
from flowmatch.report.numbers import scaled, significant
from flowmatch.report.reading import Record, Run, finite, number, numbers, spread_out
from flowmatch.report.scales import Axis, suited

_IMAGES = Axis("training images seen")
_TIME = Axis("t (0 noise, 1 data)", bounds=(0.0, 1.0))


def curves_section(run: Run) -> Markup:
    """Loss and rates, evaluations during training, loss and gradients against t."""
    logged = run.with_key("loss")
    if not run.records:
        told = "This run has no metrics.jsonl; training writes it:"
        return section("Training", missing(told, run.train_command()), name="training")
    charts = [
        _over_images(
            logged,
            "loss",
            Axis("loss (log)", "log"),
            "Mean since the last point. It falls fast, then slowly; it does not go to zero, since"
            " noise and data cannot be told from their mixture. Compare runs of one loss only."
            f"{_not_finite(run)}",
        ),
        _over_images(
            logged,
            "grad_norm",
            Axis("gradient norm (log)", "log"),
            "Global norm before clipping. Spikes that return, or growth, ask for a lower learning"
            f" rate. {_clipping(run)}",
        ),
        _over_images(
            logged, "lr", Axis("learning rate", from_zero=True), "What the schedule gave."
        ),
        _over_images(
            logged,
            "images_per_second",
            Axis("images per second", from_zero=True),
            "Training alone, without saving and sampling. Dips mean that something else was busy.",
        ),
    ]
    drawn = [c for c in charts if c is not None]
    inner = element("div", *drawn, class_="charts") if drawn else Markup()
    return section("Training", inner, _evaluations(run), _diagnostics(run), name="training")


def _over_images(
    records: Sequence[Record], key: str, y: Axis, caption: str, *, dots: bool = False
) -> Markup | None:
    points = [
        (images, number(r, key)) for r in records if (images := number(r, "images")) is not None
    ]
    series = Series("", points, dots=dots)
    chart = line_chart(f"{y.label} against training images seen", [series], x=_IMAGES, y=y)
    size = lines_a_point(len(points))
    bunched = f" Each point is the mean of {size} logged lines." if size > 1 else ""
    return figure(chart, caption + bunched) if chart else None


def _not_finite(run: Run) -> str:
    count = sum("loss" in r and number(r, "loss") is None for r in run.records)
    return f" Not drawn: {count:,} lines whose loss was not finite." if count else ""


def _clipping(run: Run) -> str:
    bound = run.config.train.max_grad_norm
    return f"It was clipped to {bound:g}." if bound else "It was not clipped."


def _evaluations(run: Run) -> Markup:
    records = [r for r in run.with_key("evaluation") if isinstance(r["evaluation"], dict)]
    heading = element("h3", "Evaluations during training")
    if not records:
        told = "None were made; to make some, train with"
        command = run.train_command("train.evaluate_every_steps=1000")
        return join(heading, missing(told, command))
    last: dict[str, Any] = records[-1]["evaluation"]
    metric = str(last.get("primary"))
    points = [
        (images, number(r, "evaluation", "metrics", metric))
        for r in records
        if (images := number(r, "images")) is not None
    ]
    scored = [(a, b) for a, b in points if b is not None]
    best = min(scored, key=lambda p: p[1], default=None)
    samples = finite(last.get("num_samples"))
    reduced = "reduced" if last.get("reduced", True) else "full"
    size = f"{reduced}: {samples:,.0f} samples" if samples else reduced
    chart = line_chart(
        f"{metric} during training",
        [Series("", points, dots=True)],
        x=_IMAGES,
        y=suited(f"{metric} ↓, {size}", [b for _, b in scored]),
        mark=(*best, f"best {significant(best[1])}") if best else None,
    )
    told = (
        "Lower is better; the circle marks the step kept as ckpt/best. Few samples bias the number,"
        " so hold it against this curve alone."
    )
    drawn = element("div", figure(chart, told), class_="charts") if chart else Markup()
    stated = join(element("b", f"Protocol ({size})"), f": {last.get('protocol', 'none stated')}")
    both = _at_best(records, metric, best)
    return join(heading, drawn, both, paragraph(stated, class_="protocol"))


def _at_best(records: Sequence[Record], metric: str, best: tuple[float, float] | None) -> Markup:
    """Every metric of the best and of the last evaluation."""
    if best is None:
        return Markup()
    at_best = next(r for r in records if number(r, "evaluation", "metrics", metric) == best[1])
    names = [*at_best["evaluation"]["metrics"]]
    rows = [
        [
            name,
            f"{number(r, 'step') or 0:,.0f}",
            scaled(number(r, "images") or 0),
            *(significant(number(r, "evaluation", "metrics", m)) for m in names),
        ]
        for name, r in (("best", at_best), ("last", records[-1]))
    ]
    head = ["", "step", "images", *(glossary.headed(m) for m in names)]
    return table(head, rows, label="Metrics of the best and the last evaluation during training")


def _diagnostics(run: Run) -> Markup:
    """What explains a loss: where in t it lies, where gradients come from, how bent paths are."""
    probed = run.with_key("grad_norm_t")
    charts = [
        _over_time(
            run.with_key("loss_t"),
            "loss_t",
            "loss",
            "Mean loss of the samples in each tenth of t. Where the late line lies under the early"
            " one, training still helped; where they meet, it was done early.",
        ),
        _over_time(
            probed,
            "grad_norm_t",
            "gradient norm",
            "Gradient of the loss at one t on a fixed batch. Times that tower over the others"
            " decide the update; a time density that draws them less evens it out.",
        ),
        _over_images(
            run.with_key("curvature"),
            "curvature",
            Axis("curvature of sampling paths"),
            "0 for straight paths at constant speed, which one Euler step would follow exactly;"
            " the higher, the more steps a solver needs.",
            dots=True,
        ),
        _over_images(
            run.with_key("clip_share"),
            "clip_share",
            Axis("share of pixels outside [−1, 1]"),
            "Values that clamping cuts off in the sample grids. Many are normal where data are"
            " often exactly black or white; growth points to guidance or a learning rate too high.",
            dots=True,
        ),
    ]
    drawn = [c for c in charts if c is not None]
    heading = element("h3", "Diagnostics")
    if not drawn:
        told = (
            "This run's metrics do not break the loss down by t; to have that written, train with"
        )
        return join(heading, missing(told, run.train_command()))
    return join(heading, element("div", *drawn, class_="charts"))


def _over_time(records: Sequence[Record], key: str, name: str, caption: str) -> Markup | None:
    """A quantity by bins of t, at the start, in the middle and at the end of training."""
    held = [r for r in records if any(v is not None for v in numbers(r, key))]
    series = []
    for i, record in enumerate(chosen := spread_out(held)):
        values = numbers(record, key)
        points = [((k + 0.5) / len(values), v) for k, v in enumerate(values)]
        shade = f"ramp{3 - len(chosen) + 1 + i}"
        label = f"{scaled(number(record, 'images') or 0)} images"
        series.append(Series(label, points, shade, dots=True))
    y = Axis(f"{name} (log)", "log")
    chart = line_chart(f"{name} against t", series, x=_TIME, y=y)
    return figure(chart, caption) if chart else None
