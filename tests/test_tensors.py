"""The shared helpers."""

import pytest
import torch

from flowmatch.randomness import keyed_generator
from flowmatch.sampling import noise
from flowmatch.tensors import batch_time, expand_like, from_uint8, to_uint8


def test_uint8_is_clamped_and_rounded_never_truncated():
    images = torch.tensor([-3.0, -1.0, -0.999, 0.0, 0.9999, 1.0, 7.0])
    assert to_uint8(images).tolist() == [0, 0, 0, 128, 255, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels).aminmax() == (-1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_time_is_never_narrower_than_float32(dtype):
    x = torch.zeros(3, 2, dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for t in (0.998, torch.tensor(0.998), torch.full((3,), 0.998)):
        time = batch_time(t, x)
        assert time.shape == (3,)
        assert time.dtype == (torch.float32 if isinstance(t, torch.Tensor) else expected)
        torch.testing.assert_close(time.double(), torch.full((3,), 0.998).double())


def test_a_time_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4,\) for a batch of 3"):
        batch_time(torch.zeros(4), torch.zeros(3, 2))


def test_expand_like():
    assert expand_like(torch.zeros(5), torch.zeros(5, 3, 8, 8)).shape == (5, 1, 1, 1)


def test_a_key_decides_the_numbers():
    def draw(*key):
        return torch.rand(4, generator=keyed_generator(*key))

    assert torch.equal(draw("a", 1), draw("a", 1))
    keys = [("a", 1), ("a", 2), ("b", 1), ("a", 1, 0), ("a", "1")]
    assert len({tuple(draw(*k).tolist()) for k in keys}) == len(keys)


def test_noise_depends_on_its_seed_alone():
    together = noise(range(10), (3, 4, 4), stream=7)
    assert together.shape == (10, 3, 4, 4)
    assert torch.equal(noise([6, 2], (3, 4, 4), stream=7), together[[6, 2]])
    assert not torch.equal(noise(range(10), (3, 4, 4), stream=8), together)
    many = noise(range(2000), (16,))
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02
    correlation = torch.corrcoef(many[:50]) - torch.eye(50)
    assert correlation.abs().max() < 0.95
