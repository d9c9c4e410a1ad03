"""Which metrics are known, which way they are better, which of them ranks."""

import pytest

from flowmatch.evaluation.glossary import (
    better,
    drawn,
    explained,
    headed,
    is_memorisation,
    primary,
)


@pytest.mark.parametrize(
    ("metric", "heading", "way"),
    [
        ("fid", "fid ↓", "lower"),
        ("fd_dinov2", "fd_dinov2 ↓", "lower"),
        ("is_data", "is_data ↑", "higher"),
        ("isotropy", "isotropy", None),  # not the inception score
        ("sliced_w2", "sliced_w2 ↓", "lower"),
        ("nn_ratio", "nn_ratio →1", None),
        ("c2st", "c2st →0.5", None),
        ("nn_held_out", "nn_held_out", None),
        ("authentic", "authentic →real", None),
    ],
)
def test_names_and_directions(metric, heading, way):
    assert headed(metric) == heading
    assert better(metric) == way


def test_the_metric_that_ranks():
    assert primary(["precision", "kd_data", "fd_data_excess", "fd_data"]) == "fd_data"
    assert primary(["nn_ratio", "w2", "energy"]) == "w2"
    assert primary(["nn_ratio", "new"]) is None


def test_an_excess_is_explained_but_not_drawn_twice():
    assert drawn(["fd_data", "fd_data_excess", "clipped", "recall"]) == ["fd_data_excess", "recall"]
    assert drawn(["fd_data"]) == ["fd_data"]
    assert "fd_data" in explained(["fd_data_excess"])["fd_data_excess"]
    assert explained(["new"]) == {}


def test_memorisation_metrics():
    names = ["nn_samples", "authentic", "authentic_held_out", "fd_data", "nnx"]
    assert [is_memorisation(n) for n in names] == [True, True, True, False, False]
