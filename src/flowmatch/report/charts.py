"""Charts as inline SVG: real text, the page's own colours, nothing that has to be fetched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flowmatch.report.html import Markup, element, join
from flowmatch.report.numbers import short, significant
from flowmatch.report.scales import Axis, Scale, limits

WIDTH, HEIGHT = 440, 240
_TOP, _BOTTOM, _LETTER = 26, 40, 6.1
_MOST_POINTS = 300
_MOST_TIPS = 40
"""Lines with more points get no dots: they would hide the line."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        label: written at the line's end; empty where the chart has only one.
        points: (x, y); a y of None breaks the line.
        colour: which of the page's chart colours, from 1; "ramp" colours for an ordered few.
        spread: half the height of an error bar at each point, or nothing.
        dots: mark each point, with its values as a tooltip.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: str = "c1"
    spread: Sequence[float | None] = ()
    dots: bool = False


@dataclass(frozen=True)
class Rule:
    """A dashed line across the chart at a value that the others are held against."""

    label: str
    value: float


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    rules: Sequence[Rule] = (),
    mark: tuple[float, float, str] | None = None,
) -> Markup | None:
    """Lines over an axis, each labelled at its end; None where there is nothing to draw.

    Args:
        title: what the chart shows, read aloud in its place.
        series: the lines.
        x, y: the axes.
        rules: dashed horizontal lines.
        mark: a point (x, y) to be circled, and its name.
    """
    drawn = [_drawable(s, x, y) for s in series]
    drawn = [s for s in drawn if any(v is not None for _, v in s.points)]
    if not drawn:
        return None
    rules = [r for r in rules if y.holds(r.value)]
    xs, ys = _extent(drawn, rules, y)
    y_low, y_high = limits(y, ys)
    ticks = Scale(y_low, y_high, HEIGHT - _BOTTOM, _TOP, y.kind).ticks(5)
    left = 10 + _LETTER * max((len(short(t)) for t in ticks), default=1)
    names = [s.label for s in drawn]
    right = WIDTH - (12 + 1.12 * _LETTER * max(map(len, names)) if any(names) else 14)
    at_x = Scale(*_x_limits(x, xs), left, right, x.kind)
    at_y = Scale(y_low, y_high, HEIGHT - _BOTTOM, _TOP, y.kind)
    parts = [
        _frame(at_x, at_y, x.label, y.label),
        *(_rule(r, at_x, at_y) for r in rules),
        *(_line(s, at_x, at_y) for s in drawn),
        *_labels(drawn, at_x, at_y),
    ]
    if mark is not None:
        parts.append(_mark(mark, at_x, at_y))
    return _svg(title, HEIGHT, *parts)


def bar_chart(title: str, values: Sequence[float | None], labels: Sequence[str]) -> Markup:
    """Horizontal bars for shares in [0, 1], each with its name and its value."""
    row, top = 19, 6
    left = 14 + _LETTER * max(map(len, labels), default=1)
    scale = Scale(0, 1, left, WIDTH - 52, "linear")
    parts = [element("line", x1=left, x2=left, y1=0, y2=top + row * len(values), class_="axis")]
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        y = top + row * i
        parts.append(_text(label, left - 7, y + 12, "end"))
        if value is not None:
            end = scale(min(max(value, 0), 1))
            parts.append(element("rect", x=left, y=y, width=end - left, height=15, class_="bar"))
        text = "none" if value is None else f"{100 * value:.1f}%"
        parts.append(_text(text, (left if value is None else end) + 6, y + 12, "start"))
    return _svg(title, top + row * len(values) + 4, *parts)


def lines_a_point(count: int) -> int:
    """How many of `count` points of a line are drawn as one, their mean."""
    return -(-count // _MOST_POINTS)


def _drawable(series: Series, x: Axis, y: Axis) -> Series:
    """A series without what the axes cannot hold, thinned to what the eye can tell apart."""
    points = [(a, b if y.holds(b) else None) for a, b in series.points if x.holds(a)]
    spread = series.spread if len(series.spread) == len(points) else ()
    size = lines_a_point(len(points))
    if size > 1:
        chunks = [points[i : i + size] for i in range(0, len(points), size)]
        points, spread = [_mean(chunk) for chunk in chunks], ()
    dots = series.dots and len(points) <= _MOST_TIPS
    return Series(series.label, points, series.colour, spread, dots)


def _mean(points: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    held = [b for _, b in points if b is not None]
    return points[-1][0], sum(held) / len(held) if held else None


def _extent(
    series: Sequence[Series], rules: Sequence[Rule], y: Axis
) -> tuple[list[float], list[float]]:
    xs = [a for s in series for a, _ in s.points]
    ys = [b for s in series for _, b in s.points if b is not None] + [r.value for r in rules]
    for s in series:
        for (_, b), half in zip(s.points, s.spread, strict=False):
            if b is not None and half is not None:
                ys += [v for v in (b - half, b + half) if y.holds(v)]
    return xs, ys


def _x_limits(x: Axis, xs: Sequence[float]) -> tuple[float, float]:
    """Time runs from edge to edge; only single points and log axes need air beside them."""
    if x.bounds is None and x.kind == "linear" and min(xs) < max(xs):
        return (0 if 0 <= min(xs) < 0.4 * max(xs) else min(xs)), max(xs)
    return limits(x, xs)


def _frame(at_x: Scale, at_y: Scale, x_label: str, y_label: str) -> Markup:
    left, right, bottom = at_x.start, at_x.end, at_y.start
    parts = [_text(y_label, 2, 13, "start", "name")]
    for tick in at_y.ticks(5):
        y = at_y(tick)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(_text(short(tick), left - 6, y + 4, "end"))
    for tick in at_x.ticks(6):
        x = at_x(tick)
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(_text(short(tick), x, bottom + 17, "middle"))
    parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(_text(x_label, (left + right) / 2, bottom + 34, "middle", "name"))
    return join(*parts)


def _line(series: Series, at_x: Scale, at_y: Scale) -> Markup:
    parts = []
    runs = itertools.groupby(series.points, key=lambda p: p[1] is not None)
    for held, run in runs:
        places = [(at_x(a), at_y(b)) for a, b in run if b is not None]
        if held and len(places) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(element("polyline", points=path, class_="line"))
        elif held and not series.dots:  # a lone point between gaps would be no line at all
            parts.append(element("circle", cx=places[0][0], cy=places[0][1], r=2, class_="dot"))
    for (a, b), half in zip(series.points, series.spread, strict=False):
        if b is not None and half is not None:
            low = max(b - half, at_y.low)
            ends = {"y1": at_y(low), "y2": at_y(min(b + half, at_y.high))}
            parts.append(element("line", x1=at_x(a), x2=at_x(a), **ends, class_="line thin"))
    if series.dots:
        parts += [_dot(series.label, a, b, at_x, at_y) for a, b in series.points if b is not None]
    return element("g", *parts, class_=series.colour)


def _dot(label: str, x: float, y: float, at_x: Scale, at_y: Scale) -> Markup:
    name = f"{label}: " if label else ""
    tip = element("title", f"{name}{significant(y)} at {short(x)}")
    return element("circle", tip, cx=at_x(x), cy=at_y(y), r=3, class_="dot")


def _labels(series: Sequence[Series], at_x: Scale, at_y: Scale) -> list[Markup]:
    """Names beside the chart at the heights of the lines' ends, apart from each other."""
    ends = []
    for s in series:
        last = next(b for _, b in reversed(s.points) if b is not None)
        ends.append((at_y(last), s))
    ends.sort(key=lambda e: e[0])
    heights = _apart([y for y, _ in ends], at_y.end + 4, at_y.start)
    return [
        element("g", _text(s.label, at_x.end + 8, y + 4, "start", "label"), class_=s.colour)
        for y, (_, s) in zip(heights, ends, strict=True)
        if s.label
    ]


def _apart(wanted: Sequence[float], top: float, bottom: float, gap: float = 13) -> list[float]:
    """Heights at least `gap` apart and as near to the wanted ones (ascending) as can be.

    Isotonic regression of `wanted[i] - i * gap` by pooling neighbours that are out of order.
    """
    pools: list[list[float]] = []
    for i, y in enumerate(wanted):
        pools.append([y - i * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    lowest = bottom - (len(wanted) - 1) * gap
    level = [max(min(fmean(pool), lowest), top) for pool in pools for _ in pool]
    return [y + i * gap for i, y in enumerate(level)]


def _rule(rule: Rule, at_x: Scale, at_y: Scale) -> Markup:
    y = at_y(rule.value)
    line = element("line", x1=at_x.start, x2=at_x.end, y1=y, y2=y, class_="rule")
    beside = y - 5 if y > _TOP + 16 else y + 13
    return join(line, _text(rule.label, at_x.start + 4, beside, "start"))


def _mark(mark: tuple[float, float, str], at_x: Scale, at_y: Scale) -> Markup:
    x, y = at_x(mark[0]), at_y(mark[1])
    near_right = x > (at_x.start + at_x.end) / 2
    anchor = "end" if near_right else "start"
    aside = x + (4 if near_right else -4)
    down = 22 if y < (at_y.start + at_y.end) / 2 else -12
    text = _text(mark[2], aside, y + down, anchor, "label")
    return join(element("circle", cx=x, cy=y, r=6, class_="ring"), text)


def _text(content: str, x: float, y: float, anchor: str, kind: str | None = None) -> Markup:
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=kind)


def _svg(title: str, height: int, *parts: Markup) -> Markup:
    box = f"0 0 {WIDTH} {height}"
    return element("svg", *parts, viewBox=box, role="img", aria_label=title, class_="chart")
