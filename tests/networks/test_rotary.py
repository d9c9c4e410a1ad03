import math

import pytest
import torch

from flowmatch.networks.rotary import axial_rotation, rotate

LIKE = torch.zeros(0, dtype=torch.float64)


def scores(grid, channels=16):
    """Scores [N, N] between the same query at every place and the same key at every place."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, channels, dtype=torch.float64)
    rotation = axial_rotation(grid, channels, like=LIKE)
    return (rotate(q, rotation) @ rotate(k, rotation).transpose(-1, -2))[0, 0]


def test_scores_depend_on_relative_places_only():
    rows, columns = 5, 7
    s = scores((rows, columns)).view(rows, columns, rows, columns)
    for down, right in ((1, 0), (0, 1), (2, 3)):
        torch.testing.assert_close(s[down:, right:, down:, right:], s[
            : rows - down, : columns - right, : rows - down, : columns - right
        ])  # fmt: skip


def test_scores_tell_rows_from_columns_and_before_from_behind():
    s = scores((3, 3)).view(3, 3, 3, 3)[1, 1].flatten()
    assert (s[:, None] - s).abs().add(torch.eye(9)).min() > 1e-3


def test_scores_do_not_depend_on_the_size_of_the_image():
    large = scores((6, 8)).view(6, 8, 6, 8)
    torch.testing.assert_close(scores((4, 5)).view(4, 5, 4, 5), large[:4, :5, :4, :5])


def test_rotation_keeps_the_norm_and_is_nothing_at_the_origin_and_before_the_grid():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2 + 4 * 5, 8, dtype=torch.float64)
    y = rotate(x, axial_rotation((4, 5), 8, first=2, like=x))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(y[:, :, :3], x[:, :, :3])
    assert (y - x)[:, :, 3:].abs().amax(dim=-1).min() > 1e-2


def test_angles_are_the_papers():
    cos, sin = axial_rotation((3, 4), 8, like=LIKE)
    row, column = 2, 3
    angles = [row, row * 10_000**-0.5, column, column * 10_000**-0.5]
    token = row * 4 + column
    assert cos[token].tolist() == pytest.approx([math.cos(a) for a in angles])
    assert sin[token].tolist() == pytest.approx([math.sin(a) for a in angles])


def test_half_of_the_pairs_turn_with_the_row_and_half_with_the_column():
    cos, _ = axial_rotation((3, 4), 16, like=LIKE)
    by_row, by_column = cos.view(3, 4, 2, 4).unbind(2)
    assert torch.equal(by_row, by_row[:, :1].expand(-1, 4, -1))
    assert torch.equal(by_column, by_column[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2],
)
def test_angles_are_at_least_float32(dtype, expected):
    assert axial_rotation((2, 2), 8, like=torch.zeros(0, dtype=dtype)).dtype == expected
