"""Lists of seeds and classes: read exactly, written short, refused by name."""

import pytest

from flowmatch.generation import parse_classes, parse_seeds
from flowmatch.generation.numbers import compress


def test_a_list_is_read_and_written():
    assert list(parse_seeds("17,5,100-103", None)) == [5, 17, 100, 101, 102, 103]
    assert parse_seeds("0-2", 3) == [0, 1, 2]
    assert parse_seeds(None, 4) == range(4)
    for text in ("5,17,100-103", "0-49999", "7", "1,3,5-6"):
        assert compress(parse_seeds(text, None)) == text
    assert compress([]) == ""


def test_classes_keep_their_order():
    assert parse_classes("7,0,3", 10) == (7, 0, 3)
    assert parse_classes("all", 3) == (0, 1, 2)
    with pytest.raises(ValueError, match="takes no class label"):
        parse_classes("all", None)


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("5,5", None, "names 5 twice"),
        ("3,1-4", None, "names 3 twice"),
        ("9-3", None, "range 9-3 reversed; write 3-9"),
        ("1,,2", None, "cannot read ''"),
        ("-4", None, "cannot read '-4'"),
        ("a-b", None, "cannot read 'a-b'"),
        ("1.5", None, "cannot read '1.5'"),
        ("1-999999999999", None, "over 100,000,000 numbers in 1-999999999999"),
        ("1-3", 4, "disagree: the seeds are 3 samples"),
        (None, None, "say how many samples"),
        (None, 0, "must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_read(text, count, message):
    with pytest.raises(ValueError, match=message):
        parse_seeds(text, count)
