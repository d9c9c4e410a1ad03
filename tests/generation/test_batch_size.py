"""The batch size that is found, and the one that is halved: neither changes a sample."""

import pytest
import torch

import flowmatch as fm
from flowmatch.generation import generate
from flowmatch.generation.batching import fastest, largest


def test_doubling_goes_on_while_it_pays():
    for overhead, best in ((0.0, 1), (1.0, 8), (100.0, 512)):
        # seconds = overhead + images: doubling b gains 5% up to about b = 9.5 overheads
        found = fastest(lambda b, overhead=overhead: overhead + b, 1 << 20)
        assert best <= found <= 2 * best
    assert fastest(lambda b: 1.0, 64) == 64


def test_one_doubling_that_does_not_pay_is_not_the_end():
    slow_at_two = {1: 1.0, 2: 2.2, 4: 2.4, 8: 4.8, 16: 9.6, 32: 0.1}
    assert fastest(slow_at_two.__getitem__, 32) == 4  # 8 and 16 bring nothing


def test_the_largest_that_fits():
    def probe(limit):
        def attempt(batch):
            if batch > limit:
                raise torch.OutOfMemoryError("too large")

        return attempt

    assert largest(probe(100), 1 << 20) == 64
    assert largest(probe(100), 32) == 32
    assert largest(probe(1), 32) == 1


def test_it_is_told_and_changes_nothing(pull, job, one, contents):
    said = []
    generate(pull, job("a"), one)
    record = generate(pull, job("b", batch="auto"), one, say=said.append)
    assert len(said) == 1
    assert "--bspp auto" in said[0]
    assert record["nfe"] == 2  # the probes do not count
    assert contents(job("a").save_dir, "0*.png") == contents(job("b").save_dir, "0*.png")


class Cramped(torch.nn.Module):
    """A network for which only small batches find memory."""

    num_classes = 10

    def __init__(self, inner, limit):
        super().__init__()
        self.inner, self.limit, self.batches = inner, limit, []

    def forward(self, x, t, cond=None):
        self.batches.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x, t, cond)


def test_out_of_memory_halves_the_batch_and_goes_on(pull, job, one, contents):
    generate(pull, job("a"), one)
    network = Cramped(pull.network, 6)
    with pytest.warns(UserWarning, match="out of memory with --bspp 10; going on with 5"):
        record = generate(fm.Flow(network, shape=pull.shape), job("b", batch=20), one)
    assert network.batches == [20, 10, *[5] * 10]
    assert record["nfe"] == 2
    assert contents(job("a").save_dir, "0*.png") == contents(job("b").save_dir, "0*.png")


def test_a_model_too_large_for_one_sample_ends_the_job(pull, job, one):
    with (
        pytest.warns(UserWarning, match="going on with 1"),
        pytest.raises(torch.OutOfMemoryError),
    ):
        generate(fm.Flow(Cramped(pull.network, 0), shape=pull.shape), job(batch=2), one)
