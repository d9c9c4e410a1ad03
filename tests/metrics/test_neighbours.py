"""The search for the nearest row: brute force, copies, near-duplicates, exclusion."""

import pytest
import torch

from flowmatch.metrics import nearest


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 5), (2100, 4200)])
def test_brute_force_finds_the_same(n, m):
    x, y = torch.randn(n, 3, 2, dtype=torch.float64), torch.randn(m, 3, 2, dtype=torch.float64)
    distance, row = nearest(x, y)
    expected = torch.cdist(x.flatten(1), y.flatten(1)).min(1)
    assert torch.equal(row, expected.indices)
    torch.testing.assert_close(distance, expected.values / 6**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_is_at_distance_zero_among_near_duplicates_far_from_the_origin(dtype):
    y = 100 + torch.randn(1, 50, dtype=dtype) + 1e-3 * torch.randn(3000, 50, dtype=dtype)
    order = torch.randperm(3000)[:100]
    distance, row = nearest(y[order], y)
    assert torch.equal(row, order)
    assert torch.equal(distance, torch.zeros(100, dtype=torch.float64))


def test_distance_is_a_root_mean_square():
    x, y = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.25)
    assert nearest(x, y).distance.tolist() == [0.25]


def test_a_row_does_not_find_itself_where_it_is_excluded():
    y = torch.randn(2500, 2, dtype=torch.float64)
    distance, row = nearest(y, y, exclude=torch.arange(2500))
    brute = torch.cdist(y, y).fill_diagonal_(torch.inf).min(1)
    assert torch.equal(row, brute.indices)
    torch.testing.assert_close(distance, brute.values / 2**0.5, rtol=1e-6, atol=1e-9)
    some = torch.tensor([2499, 3])
    assert torch.equal(nearest(y[some], y, exclude=some).row, row[some])


def test_long_rows_make_no_difference():
    x, y = torch.randn(5, 200_000), torch.randn(90, 200_000)
    y[40] = x[2] + 0.1
    distance, row = nearest(x, y)
    assert row[2] == 40
    assert float(distance[2]) == pytest.approx(0.1, rel=1e-4)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"rows have shape \(3, 2\) and rows to find \(3, 4\)"):
        nearest(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="at least 1 rows of rows to find"):
        nearest(torch.zeros(3, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="one int64 row to exclude for each of 3 rows"):
        nearest(torch.zeros(3, 2), torch.zeros(3, 2), exclude=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="nothing is left to find"):
        nearest(torch.zeros(1, 2), torch.zeros(1, 2), exclude=torch.zeros(1, dtype=torch.int64))
