"""Memorisation: copies, fresh draws, and what lies between."""

import pytest
import torch

from flowmatch.metrics import memorisation


def test_copies_are_at_distance_zero_and_none_is_authentic():
    train, held_out = torch.randn(300, 1, 4, 4), torch.randn(100, 1, 4, 4)
    found = memorisation(train[:120], train, held_out)
    assert (found.nn_samples, found.nn_ratio, found.authentic) == (0, 0, 0)
    assert found.nn_held_out > 0.1
    assert found.authentic_held_out > 0.1


def test_fresh_draws_look_like_held_out_data():
    train, samples, held_out = torch.randn(6000, 3, dtype=torch.float64).split([2000] * 3)
    found = memorisation(samples, train, held_out)
    assert found.nn_ratio == pytest.approx(1, abs=0.05)
    assert found.authentic == pytest.approx(found.authentic_held_out, abs=0.04)


def test_points_on_a_line_by_hand():
    train = torch.tensor([[0.0], [1.0], [4.0], [10.0]])  # nearest others at 1, 1, 3, 6
    samples = torch.tensor([[-0.5], [2.4], [4.5], [5.0], [17.0]])
    # nearest 0, 1, 4, 4, 10 at 0.5, 1.4, 0.5, 1, 7: further than 1, 1, 3, 3, 6 are two of them
    found = memorisation(samples, train)
    assert found.nn_samples == 1
    assert found.authentic == pytest.approx(2 / 5)
    assert found[1:3] == (None, None)
    assert found.authentic_held_out is None


def test_half_of_copies_halves_the_share():
    train, fresh = torch.randn(4000, 8, dtype=torch.float64).split([2000, 2000])
    mixed = torch.cat([train[:1000], fresh[:1000]])
    whole, half = memorisation(fresh[:1000], train), memorisation(mixed, train)
    assert half.authentic == pytest.approx(whole.authentic / 2)


def test_mistakes_are_named():
    train = torch.randn(20, 2)
    with pytest.raises(ValueError, match="at least half of the held-out data are copies"):
        memorisation(torch.randn(5, 2), train, train[:4])
    with pytest.raises(ValueError, match="at least 2 training samples, got 1"):
        memorisation(torch.randn(5, 2), train[:1])
