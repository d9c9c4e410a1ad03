"""Axes put values where they belong and label them with round numbers."""

import pytest

from flowmatch.report.scales import Axis, Scale, limits, suited


def test_a_linear_scale_is_affine_and_a_log_scale_is_in_the_logarithm():
    linear = Scale(2.0, 6.0, 100.0, 20.0, "linear")
    assert (linear(2), linear(4), linear(6)) == (100, 60, 20)
    log = Scale(1e-2, 1e2, 0.0, 400.0, "log")
    assert log(1.0) == pytest.approx(200)
    assert log(10.0) == pytest.approx(300)


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0.0, 1.0, "linear", [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.3, 0.9, "linear", [-0.25, 0, 0.25, 0.5, 0.75]),
        (0.0, 1_280_000.0, "linear", [0, 500_000, 1_000_000]),
        (4e-6, 2.1e-5, "linear", [5e-6, 1e-5, 1.5e-5, 2e-5]),
        (1.5, 4.0, "log", [1.5, 2, 2.5, 3, 3.5, 4]),
        (0.9, 120.0, "log", [1, 3, 10, 30, 100]),
        (1e-8, 1e8, "log", [1e-8, 1e-4, 1, 1e4, 1e8]),
    ],
)
def test_ticks_are_round_and_inside(low, high, kind, expected):
    assert Scale(low, high, 0.0, 1.0, kind).ticks(5) == pytest.approx(expected)


def test_limits_hold_the_data():
    assert limits(Axis("x", bounds=(0, 1)), [5.0]) == (0, 1)
    assert limits(Axis("x"), [10.0, 100.0]) == (0, 104.5)
    low, high = limits(Axis("x"), [90.0, 100.0])
    assert 85 < low < 90
    assert 100 < high < 105
    assert limits(Axis("x", from_zero=True), [90.0, 100.0])[0] == 0
    for values in ([], [3.0], [3.0, 3.0], [0.0], [-2.0, -2.0]):
        for axis in (Axis("x"), Axis("x", from_zero=True)):
            low, high = limits(axis, values)
            assert all(low <= v <= high for v in values)
            assert low < high
    low, high = limits(Axis("x", "log"), [7.0])
    assert 0 < low < 7 < high


def test_an_axis_is_logarithmic_where_that_helps():
    assert suited("fd", [1.0, 50.0]).kind == "log"
    assert suited("fd", [1.0, 5.0]).kind == "linear"
    assert suited("kd", [-0.1, 50.0]).kind == "linear"
    assert not Axis("x", "log").holds(0.0)
    assert not Axis("x").holds(float("nan"))
