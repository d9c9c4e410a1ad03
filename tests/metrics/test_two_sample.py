"""The classifier two-sample test, whose best accuracy is known for Gaussians."""

import math
import warnings

import pytest
import torch

from flowmatch.metrics import classifier_two_sample


def test_equal_laws_cannot_be_told_apart():
    x, y = torch.randn(2, 1000, 2)
    assert classifier_two_sample(x, y) == pytest.approx(0.5, abs=0.04)


def test_separate_laws_are_always_told_apart():
    x, y = torch.randn(2, 300, 2)
    assert classifier_two_sample(x, y + 20) == 1


def test_overlapping_gaussians_reach_the_best_accuracy_there_is():
    x, y = torch.randn(1500, 2), torch.randn(1500, 2) + torch.tensor([2.0, 0.0])
    best = (1 + math.erf(1 / 2**0.5)) / 2
    assert classifier_two_sample(x, y, folds=3) == pytest.approx(best, abs=0.025)


def test_means_and_scales_alone_do_not_decide():
    angle = 2 * math.pi * torch.rand(800, 1)
    ring = 1e3 + 1e-2 * torch.cat([angle.cos(), angle.sin()], 1)
    normal = 1e3 + 1e-2 * torch.randn(800, 2) / 2**0.5
    assert classifier_two_sample(ring.double(), normal.double(), folds=2) > 0.85


def test_unequal_numbers_do_not_raise_the_accuracy():
    x, y = torch.randn(200, 2), torch.randn(1400, 2)
    assert classifier_two_sample(x, y, folds=2) == pytest.approx(0.5, abs=0.05)


def test_it_says_the_same_twice_and_warns_of_nothing():
    x, y = torch.randn(2, 100, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classifier_two_sample(x, y) == classifier_two_sample(x, y)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least 5 rows of y"):
        classifier_two_sample(torch.randn(9, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="at least 2 folds"):
        classifier_two_sample(torch.randn(9, 2), torch.randn(9, 2), folds=1)
