"""Charts draw each value where the axes say, and nothing that is not a number."""

import math
import re

import pytest

from flowmatch.report.charts import Rule, Series, _apart, bar_chart, line_chart
from flowmatch.report.scales import Axis

X, Y = Axis("images"), Axis("loss")


def lines(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline points="([^"]+)"', svg)
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in found]


def test_points_lie_where_the_ticks_say():
    svg = line_chart("loss", [Series("", [(0, 0.0), (50, 5.0), (100, 10.0)])], x=X, y=Y)
    ((left, bottom), middle, (right, top)) = lines(svg)[0]
    assert middle == pytest.approx(((left + right) / 2, (bottom + top) / 2), abs=0.11)
    ticks = dict(re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', svg))
    heights = {float(label): float(y) - 4 for y, label in ticks.items()}
    assert heights[10] == pytest.approx(top, abs=0.11)
    assert heights[0] == pytest.approx(bottom, abs=0.11)


def test_a_line_breaks_at_what_cannot_be_drawn():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 3.0), (4, 4.0), (5, None), (6, 5.0)]
    svg = line_chart("loss", [Series("", points)], x=X, y=Y)
    assert [len(line) for line in lines(svg)] == [2, 2]
    assert svg.count("<circle") == 1  # the lone last point
    assert "nan" not in svg
    log = line_chart("loss", [Series("", [(0, 1.0), (1, 0.0), (2, 1.0)])], x=X, y=Axis("l", "log"))
    assert lines(log) == []
    assert log.count("<circle") == 2


@pytest.mark.parametrize("points", [[], [(0, None)], [(0, math.inf)], [(math.nan, 1.0)]])
def test_without_numbers_there_is_no_chart(points):
    assert line_chart("loss", [Series("", points)], x=X, y=Y) is None


def test_many_points_become_means():
    points = [(i, float(i % 2)) for i in range(1200)]
    svg = line_chart("loss", [Series("", points, dots=True)], x=X, y=Y)
    (line,) = lines(svg)
    assert len(line) == 300
    assert len({y for _, y in line}) == 1  # every bunch of four has the mean 1/2
    assert "<circle" not in svg


def test_rules_spreads_and_names_are_drawn_inside():
    series = [
        Series("heun", [(10, 3.0), (100, 1.0)], spread=[0.5, 0.25], dots=True),
        Series("<b>", [(10, 5.0), (100, 1.01)]),
    ]
    svg = line_chart("fd", series, x=Axis("nfe", "log"), y=Y, rules=[Rule("held-out data", 0.5)])
    assert "held-out data" in svg
    assert "heun: 3.000 at 10" in svg
    assert "&lt;b&gt;</text>" in svg
    assert svg.count("line thin") == 2
    for x, y in re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', svg):
        assert 0 <= float(x) <= 440
        assert 0 <= float(y) <= 240


def test_names_stay_apart_near_their_lines_and_inside():
    assert _apart([10, 50, 90], 0, 200) == [10, 50, 90]
    assert _apart([50, 50, 50], 0, 200) == [37, 50, 63]
    assert _apart([2, 3], 5, 200) == [5, 18]
    assert _apart([199, 200], 0, 200) == [187, 200]


def test_bars_are_as_long_as_their_shares():
    svg = bar_chart("recognised", [1.0, 0.5, 0.0, None, 1.7], list("abcde"))
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height', svg)]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.02)
    assert widths[2:] == [0, widths[0]]
    assert "none" in svg
    assert "50.0%" in svg
