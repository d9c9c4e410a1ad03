"""The order of training: each sample once an epoch, found without replaying."""

from __future__ import annotations

import pytest
import torch

from flowmatch.data import ShuffledOrder


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_every_epoch_visits_each_sample_once(length):
    epochs = ShuffledOrder(length, seed=3).indices(0, 5 * length).reshape(5, length)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(length).expand(5, length))


def test_epochs_and_seeds_differ():
    epochs = ShuffledOrder(100, seed=0).indices(0, 200).reshape(2, 100)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], ShuffledOrder(100, seed=1).indices(0, 100))


def test_random_access_equals_sequential():
    order = ShuffledOrder(10, seed=0)
    whole = order.indices(0, 100)
    for start, stop in [(95, 100), (0, 1), (7, 38), (50, 50), (9, 11), (10, 20)]:
        assert torch.equal(ShuffledOrder(10, seed=0).indices(start, stop), whole[start:stop])
        assert torch.equal(order.indices(start, stop), whole[start:stop])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    ShuffledOrder(10, seed=0).indices(0, 30)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="pass at least one"):
        ShuffledOrder(0, seed=0)
