"""The kernel distance: torch-fidelity's number, and its closed form."""

import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from flowmatch.metrics import kernel_distance


def test_equal_to_torch_fidelity():
    features, reference = torch.randn(80, 12), torch.randn(70, 12) + 0.3
    ours = kernel_distance(features, reference, subsets=7, subset_size=50)
    theirs = kid_features_to_metric(
        features, reference, kid_subsets=7, kid_subset_size=50, verbose=False
    )
    assert ours.mean == theirs["kernel_inception_distance_mean"]
    assert ours.std == theirs["kernel_inception_distance_std"]


def test_few_rows_make_the_subsets_smaller():
    features, reference = torch.randn(30, 4), torch.randn(90, 4)
    assert kernel_distance(features, reference) == kernel_distance(
        features, reference, subset_size=30
    )


def test_a_shift_in_one_dimension():
    # E (xy + 1)^3 = 1 + 3 m m' + 3 E x^2 E y^2 + E x^3 E y^3, at N(0, 1) and N(1/2, 1)
    m, second, third = 0.5, 1.25, 0.125 + 1.5
    expected = (1 + 3 + 0) + (1 + 3 * m**2 + 3 * second**2 + third**2) - 2 * (1 + 3 * second)
    x, y = torch.randn(2, 10_000, 1, dtype=torch.float64)
    found = kernel_distance(x, y + m, subsets=60, subset_size=500)
    assert found.mean == pytest.approx(expected, rel=0.1)
    same = kernel_distance(x, y, subsets=60, subset_size=500)
    assert abs(same.mean) < expected / 20


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"shape \(5, 3\) and reference features \(5, 2\)"):
        kernel_distance(torch.zeros(5, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"features as \[N, D\], got shape \(5, 2, 2\)"):
        kernel_distance(torch.zeros(5, 2, 2), torch.zeros(5, 2, 2))
    with pytest.raises(ValueError, match="1 of 2 rows of reference features"):
        kernel_distance(torch.zeros(2, 1), torch.tensor([[0.0], [torch.nan]]))
    with pytest.raises(ValueError, match="at least 2 rows of features"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="subset_size=1"):
        kernel_distance(torch.zeros(5, 3), torch.zeros(5, 3), subset_size=1)
    with pytest.raises(ValueError, match=r"floating-point \[N, \.\.\.\] tensor.*int64"):
        kernel_distance(torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, 3))
