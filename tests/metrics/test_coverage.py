"""Precision, recall, density and coverage: cases with known answers, and peers."""

import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from flowmatch.metrics import density_coverage, precision_recall

BOTH = pytest.mark.parametrize("metric", [precision_recall, density_coverage])


def test_equal_to_torch_fidelity():
    features, reference = torch.randn(400, 6), 1.3 * torch.randn(350, 6) + 0.5
    theirs = prc_features_to_metric(features, reference, verbose=False)
    ours = precision_recall(features, reference)
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-9)
    assert 0.05 < ours.recall < ours.precision < 0.99


def test_generated_first():
    narrow, wide = 0.2 * torch.randn(500, 2), torch.randn(500, 2)
    assert precision_recall(narrow, wide).precision > 0.95
    assert precision_recall(narrow, wide).recall < 0.5
    assert density_coverage(narrow, wide).density > 1
    assert density_coverage(narrow, wide).coverage < 0.5


@BOTH
def test_sets_far_apart_share_nothing(metric):
    assert metric(torch.randn(50, 3), torch.randn(50, 3) + 100) == (0, 0)


@BOTH
def test_the_data_themselves_are_covered(metric):
    data = torch.randn(200, 3, dtype=torch.float64)
    shared = metric(data, data[torch.randperm(200)], neighbours=4)
    # each ball holds its centre and, strictly inside, k - 1 neighbours
    assert shared == (1, 1)


def test_points_on_a_line_by_hand():
    data = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # distances of the nearest: 1, 1, 2, 7
    samples = torch.tensor([[0.5], [4.0], [-9.0], [3.5], [50.0]])
    # 0.5 lies in the balls of 0 and 1, 4.0 in those of 3 and 10, 3.5 in those of 3 and 10
    assert density_coverage(samples, data, neighbours=1) == (6 / 5, 1)
    assert density_coverage(samples[2:], data, neighbours=1) == (2 / 3, 0.5)


def test_the_same_law_has_density_one_and_the_coverage_of_the_paper():
    x, y = torch.randn(2, 3000, 4, dtype=torch.float64)
    found = density_coverage(x, y, neighbours=3)
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - 2**-3, abs=0.02)


def test_density_and_coverage_by_brute_force_beyond_one_tile():
    x, y = torch.randn(2500, 3, dtype=torch.float64), torch.randn(2300, 3, dtype=torch.float64)
    radii = torch.cdist(y, y).kthvalue(6).values
    inside = torch.cdist(y, x) < radii[:, None]
    expected = float(inside.sum() / (5 * 2500)), float(inside.any(1).double().mean())
    assert density_coverage(x, y) == pytest.approx(expected, rel=1e-6)


@BOTH
def test_mistakes_are_named(metric):
    with pytest.raises(ValueError, match="at least 4 rows of reference features"):
        metric(torch.randn(9, 2), torch.randn(3, 2), neighbours=3)
    with pytest.raises(ValueError, match="at least 4 rows of features"):
        metric(torch.randn(3, 2), torch.randn(9, 2), neighbours=3)
    with pytest.raises(ValueError, match="at least 1 neighbour, got 0"):
        metric(torch.randn(9, 2), torch.randn(9, 2), neighbours=0)
