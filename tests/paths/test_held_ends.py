"""Held ends: the path in between as it is, and the whole way over what is held."""

import pytest
import torch

from flowmatch.paths import VP, HeldEnds, Linear, Polynomial, Trig


@pytest.mark.parametrize("path", [Linear(), Trig(), VP(), Polynomial(4.0)], ids=str)
def test_it_is_the_path_in_between_and_covers_the_rest(path):
    held = HeldEnds(path, start=0.1, stop=0.8)
    t = torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
    for mine, own in zip(held.coefficients(t), path.coefficients(t), strict=True):
        assert torch.equal(mine, own)
    before, after = torch.tensor([0.0, 0.05]).double(), torch.tensor([0.9, 1.0]).double()
    edges = torch.tensor([0.0, 0.1, 0.8, 1.0], dtype=torch.float64)
    for value, slope, own in (
        (held.alpha, held.d_alpha, path.alpha(edges)),
        (held.sigma, held.d_sigma, path.sigma(edges)),
    ):
        torch.testing.assert_close(value(before), own[1].expand(2))
        torch.testing.assert_close(value(after), own[2].expand(2))
        torch.testing.assert_close(slope(before) * 0.1, (own[1] - own[0]).expand(2))
        torch.testing.assert_close(slope(after) * 0.2, (own[3] - own[2]).expand(2))


def test_an_end_that_is_not_held_stays_as_it_is():
    path, ends = Polynomial(4.0), torch.tensor([0.0, 1.0])
    held = HeldEnds(path, start=0.0, stop=1.0)
    for mine, own in zip(held.coefficients(ends), path.coefficients(ends), strict=True):
        assert torch.equal(mine, own)
