import math

import pytest
import torch

from flowmatch.networks.embeddings import (
    ClassEmbedding,
    FourierEmbedding,
    TimeEmbedding,
    read_labels,
    sinusoidal_embedding,
)


def test_sinusoidal_embedding_is_the_formula():
    t, dim, scale = 0.3, 6, 1000.0
    phases = [scale * t * math.exp(-math.log(10_000) * i / 3) for i in range(3)]
    expected = [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
    embedded = sinusoidal_embedding(torch.tensor([t], dtype=torch.float64), dim, scale=scale)
    torch.testing.assert_close(embedded[0], torch.tensor(expected, dtype=torch.float64))


def test_endpoint_ends_at_the_lowest_frequency():
    t = torch.tensor([0.3], dtype=torch.float64)
    embedded = sinusoidal_embedding(t, 6, endpoint=True)
    phases = 300 * torch.tensor([1, 1e-2, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(embedded[0], torch.cat([phases.cos(), phases.sin()]))


def test_fourier_embedding_is_the_formula_of_frequencies_that_are_saved():
    torch.manual_seed(0)
    embed = FourierEmbedding(512, scale=16.0)
    frequencies = embed.state_dict()["frequencies"].double()
    assert frequencies.std().item() == pytest.approx(16, rel=0.15)
    embedded = embed(torch.tensor([0.0, 0.3], dtype=torch.float64))
    phases = 2 * math.pi * 0.3 * frequencies
    torch.testing.assert_close(embedded[1], torch.cat([phases.cos(), phases.sin()]))
    assert torch.equal(embedded[0], torch.tensor([1.0] * 256 + [0.0] * 256).double())
    assert embed.double()(torch.rand(2)).dtype == torch.float32


@pytest.mark.parametrize("dim", [1, 7])
def test_odd_length_ends_in_a_zero(dim):
    t = torch.rand(3)
    embedded = sinusoidal_embedding(t, dim)
    assert torch.equal(embedded[:, -1], torch.zeros(3))
    assert torch.equal(embedded[:, :-1], sinusoidal_embedding(t, dim - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_that_of_time_under_autocast_too(dtype):
    t = torch.rand(16, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = sinusoidal_embedding(t, 64)
    assert embedded.dtype == dtype
    assert torch.equal(embedded, sinusoidal_embedding(t, 64))


def test_time_embedding_casts_to_the_dtype_of_its_weights():
    embed = TimeEmbedding(8, 16).bfloat16()
    assert embed(torch.rand(3, dtype=torch.float64)).dtype == torch.bfloat16


def test_class_embedding_has_a_last_row_for_the_null_class():
    assert ClassEmbedding(10, 4).weight.shape == (11, 4)


def test_read_labels_fills_in_the_null_class():
    labels = read_labels(None, torch.zeros(3, 2), num_classes=10)
    assert torch.equal(labels, torch.tensor([10, 10, 10]))
    assert read_labels({}, torch.zeros(3, 2), num_classes=None) is None
