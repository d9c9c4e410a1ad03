"""Numbers as they are shown."""

import math

import pytest

from flowmatch.report.numbers import (
    decimals_for,
    duration,
    scaled,
    short,
    significant,
    with_spread,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (1.23456, "1.235"),
        (12345.6, "12,346"),
        (-0.012345, "−0.01235"),
        (1e-5, "1.000e−5"),
        (2.5e12, "2.500e12"),
        (math.nan, "nan"),
        (None, "–"),
    ],
)
def test_significant_digits(value, expected):
    assert significant(value) == expected


def test_a_spread_has_the_decimals_of_its_value():
    assert with_spread(1.23456, 0.0512) == "1.235 ± 0.051"
    assert with_spread(1.23456, 0.0003) == "1.235 ± 0.00030"
    assert with_spread(1.23456, 0.0) == "1.235 ± 0.000"
    assert with_spread(1.23456, None) == "1.235"
    assert with_spread(None, 1.0) == "–"
    assert with_spread(1.0, 0.1, decimals_for([1.0, 116.0])) == "1.00 ± 0.10"


def test_a_column_shares_its_decimals():
    assert decimals_for([1.5, 9.0, None, math.nan]) == 3
    assert decimals_for([0.0024, 0.0104]) == 6
    assert decimals_for([1e-9, 100.0]) == 2  # not eleven decimals for the sake of one outlier
    assert decimals_for([12345.0]) == 0
    assert decimals_for([0.0, None]) is None
    assert decimals_for([1e-12]) is None


def test_units():
    assert [scaled(v) for v in (7, 999.6, 96_000, 1_234_567)] == ["7", "1k", "96k", "1.23M"]
    assert scaled(2.5e12, "FLOP/s") == "2.5 TFLOP/s"
    assert [short(v) for v in (0.0, 20_000.0, 1.5e6, 1e-5, -0.25)] == [
        *("0", "20k", "1.5M", "1e−5", "−0.25"),
    ]
    assert [duration(s) for s in (0.25, 42, 59.7, 200, 18_420, 200_000)] == [
        *("0.2 s", "42 s", "1 min 00 s", "3 min 20 s", "5 h 07 min", "2 d 08 h"),
    ]
