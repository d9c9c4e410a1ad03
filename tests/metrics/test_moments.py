"""Streaming moments against numpy's, however the rows come."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch

from flowmatch.metrics import Moments


def same(moments, features, **tolerance):
    rows = features.double().numpy()
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), **tolerance)
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), **tolerance)


@pytest.mark.parametrize("sizes", [[1000], [1] * 7 + [993], [300, 0, 700], [999, 1]])
def test_moments_are_numpys_however_the_rows_are_divided(sizes):
    features = torch.randn(1000, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    parts = [p for p in features.split(sizes) if len(p)]
    streamed = Moments.zeros(5)
    for part in parts:
        streamed.add(part)
    same(streamed, features, rtol=1e-12, atol=1e-13)
    shards = [Moments.of(part) for part in parts]
    same(reduce(add, shards, Moments.zeros(5)), features, rtol=1e-12, atol=1e-13)


def test_nothing_cancels_far_from_zero():
    features = 1e8 + torch.randn(500, 3, dtype=torch.float64)
    both = Moments.of(features[:13]) + Moments.of(features[13:])
    for moments in (Moments.of(features), both):
        same(moments, features, rtol=1e-7, atol=1e-8)
    # the sum of squares less the square of the sum would be off by far more than the covariance
    naive = (features.T @ features - 500 * both.mean.outer(both.mean)) / 499
    assert (naive - both.covariance).abs().max() > 0.1


def test_many_rows_go_through_in_slabs():
    features = torch.randn(3000, 1100)  # more numbers than a slab holds
    same(Moments.of(features), features, rtol=1e-9, atol=1e-9)


def test_addition_leaves_its_terms_alone():
    a, b = Moments.of(torch.randn(4, 2)), Moments.of(torch.randn(6, 2))
    before = a.mean.clone(), a.scatter.clone()
    assert (a + b).count == 10
    assert a.count == 4
    assert torch.equal(a.mean, before[0])
    assert torch.equal(a.scatter, before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_features_are_summed_in_float64(dtype):
    features = torch.randn(100, 4).to(dtype)
    same(Moments.of(features), features, rtol=1e-12, atol=1e-13)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        _ = Moments.of(torch.zeros(1, 2)).covariance
    with pytest.raises(ValueError, match=r"as \[N, 3\], got shape \(5, 2\)"):
        Moments.zeros(3).add(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="moments of 3 and of 2 features"):
        Moments.zeros(3) + Moments.zeros(2)
    broken = torch.zeros(5, 2)
    broken[1, 0], broken[4, 1] = torch.nan, torch.inf
    moments = Moments.zeros(2)
    with pytest.raises(ValueError, match="2 of 5 rows of features hold NaN or infinity"):
        moments.add(broken)
    assert moments.count == 0
