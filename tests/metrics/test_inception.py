"""The Inception Score: its bounds, which are exact, and torch-fidelity."""

import math

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from flowmatch.metrics import inception_score


def test_sure_and_even_is_the_number_of_classes():
    logits = 100 * torch.eye(7, dtype=torch.float64).repeat(20, 1)
    assert inception_score(logits, splits=1).mean == pytest.approx(7, rel=1e-12)


def test_unsure_or_always_the_same_is_one():
    for logits in (torch.zeros(50, 7), 100 * torch.eye(7)[:1].repeat(50, 1)):
        assert inception_score(logits, splits=5) == pytest.approx((1, 0), abs=1e-9)


def test_two_classes_at_a_known_certainty():
    p = 0.9
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log().repeat(40, 1)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = inception_score(logits, splits=1)
    assert found == pytest.approx((2 * math.exp(-entropy), 0), rel=1e-12)


def test_equal_to_torch_fidelity():
    logits = 3 * torch.randn(203, 10)
    theirs = isc_features_to_metric(logits, splits=10)
    assert inception_score(logits) == tuple(theirs.values())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least 10 rows of logits"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(ValueError, match=r"shape \(9, 3, 1\)"):
        inception_score(torch.zeros(9, 3, 1))
    with pytest.raises(ValueError, match="9 of 9 rows of logits hold NaN"):
        inception_score(torch.full((9, 3), torch.nan), splits=2)
