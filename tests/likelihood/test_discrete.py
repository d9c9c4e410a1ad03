"""Bits a dimension, dequantisation, and the bound, against probabilities that are known."""

import math

import pytest
import torch
from known_flows import linear

from flowmatch.likelihood import (
    Exact,
    Hutchinson,
    bits_per_dim,
    dequantise,
    importance_weighted_bound,
    log_prob,
)
from flowmatch.solvers import Heun
from flowmatch.tensors import from_uint8, to_uint8


def uniform_over_bins(x, bins=256):
    """Log-density of the uniform law over all bins, whose ends are half a bin outside [-1, 1]."""
    width = 2 / (bins - 1)
    inside = (x.abs() <= 1 + width / 2).flatten(1).all(1)
    each = torch.full_like(x, -math.log(2 + width)).flatten(1).sum(1)
    return torch.where(inside, each, -torch.inf)


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_uniform_noise_has_as_many_bits_as_its_levels(bins):
    levels = torch.randint(bins, (50, 3, 4, 4))
    x1 = dequantise(2 * levels.double() / (bins - 1) - 1, bins=bins)
    bits = bits_per_dim(uniform_over_bins(x1, bins), 48, bins=bins)
    torch.testing.assert_close(bits, torch.full((50,), math.log2(bins), dtype=torch.float64))


def test_eight_bits_of_uint8_noise():
    images = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8)
    bits = bits_per_dim(uniform_over_bins(dequantise(from_uint8(images)).double()), 64)
    torch.testing.assert_close(bits, torch.full((50,), 8.0, dtype=torch.float64))


def test_bits_of_a_gaussian_approach_its_entropy():
    """On fine bins, code length is differential entropy plus the bits of the resolution."""
    std, dims = 0.2, 10_000
    x = std * torch.randn(4, dims, dtype=torch.float64)
    nats = torch.distributions.Normal(0.0, std).log_prob(x).sum(1)
    entropy = math.log2(std * math.sqrt(2 * math.pi * math.e))
    bits = bits_per_dim(nats, dims)
    assert bits.mean().item() == pytest.approx(entropy + math.log2(127.5), abs=0.02)


def test_dequantised_images_fill_their_bins_and_round_back():
    images = torch.arange(256, dtype=torch.uint8).repeat(40, 1)
    x1 = dequantise(from_uint8(images))
    assert torch.equal(to_uint8(x1), images)
    within = (x1 - from_uint8(images)) * 127.5  # uniform in [-1/2, 1/2)
    assert within.min() < -0.499
    assert 0.499 < within.max() < 0.5001
    assert within.mean().item() == pytest.approx(0, abs=0.01)
    assert within.var().item() == pytest.approx(1 / 12, rel=0.03)


def test_noise_depends_on_stream_seed_and_draw_alone():
    x1 = from_uint8(torch.randint(256, (4, 1, 3, 3), dtype=torch.uint8))
    all_of_them = dequantise(x1, seeds=[7, 8, 9, 10])
    assert torch.equal(dequantise(x1[2:], seeds=[9, 10]), all_of_them[2:])
    for other in ({"draw": 1}, {"stream": 1}):
        assert not torch.equal(dequantise(x1, seeds=[7, 8, 9, 10], **other), all_of_them)
    assert torch.equal(dequantise(x1), dequantise(x1, seeds=range(4)))


def test_what_is_not_on_the_levels_is_refused():
    levels = from_uint8(torch.tensor([[0, 100, 255]], dtype=torch.uint8))
    for wrong in (dequantise(levels), 2 * levels, levels * 1.001):
        with pytest.raises(ValueError, match="256 levels"):
            dequantise(wrong)
    with pytest.raises(ValueError, match=r"u / 127\.5 - 1"):
        dequantise(torch.zeros(1, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="2 seeds for a batch of 1"):
        dequantise(levels, seeds=[0, 1])
    with pytest.raises(ValueError, match="at least 2"):
        bits_per_dim(torch.zeros(1), 1, bins=1)
    with pytest.raises(ValueError, match="dims"):
        bits_per_dim(torch.zeros(1), 0)
    with pytest.raises(ValueError, match="at least 1 draw"):
        importance_weighted_bound(uniform_over_bins, levels, draws=0)


def test_the_bound_rises_to_the_probability_of_the_bin():
    """Under a Gaussian, a bin's probability is a difference of its distribution function."""
    bins, dims, n = 5, 3, 1500
    law = torch.distributions.Normal(*torch.tensor([0.1, 0.3], dtype=torch.float64))
    x1 = torch.tensor([[-0.5, 0.0, 0.5]], dtype=torch.float64).expand(n, dims)
    width = 2 / (bins - 1)
    chance = law.cdf(x1[0] + width / 2) - law.cdf(x1[0] - width / 2)
    truth = -chance.log2().mean().item()
    bits, errors = [], []
    for draws in (1, 2, 8, 32):
        bound = importance_weighted_bound(
            lambda x: law.log_prob(x).sum(1), x1, draws=draws, bins=bins
        )
        each = bits_per_dim(bound, dims, bins=bins)
        bits.append(each.mean().item())
        errors.append(each.std().item() / math.sqrt(n))
    assert bits[0] > bits[1] > bits[2] > bits[3] > truth - 3 * errors[3]
    assert bits[0] > truth + 10 * errors[0]
    assert bits[3] == pytest.approx(truth, abs=0.02)


def test_one_draw_is_the_density_of_the_first_draw():
    x1 = from_uint8(torch.randint(256, (5, 4), dtype=torch.uint8))
    bound = importance_weighted_bound(lambda x: x.sum(1), x1, draws=1, seeds=range(3, 8))
    torch.testing.assert_close(bound, dequantise(x1, seeds=range(3, 8)).sum(1))


def test_probes_are_shared_by_the_draws_of_a_sample():
    """Where div v is the same everywhere, the probes' error is too: it does not raise the bound."""
    x1 = from_uint8(torch.randint(256, (5, 4), dtype=torch.uint8)).double()

    def bound(divergence):
        def density(x):
            return log_prob(linear(), x, Heun(steps=4), divergence=divergence)

        return importance_weighted_bound(density, x1, draws=8), density(x1)

    (exact, exact_nats), (probed, probed_nats) = bound(Exact()), bound(Hutchinson())
    assert (probed - exact).abs().min() > 1e-3
    torch.testing.assert_close(probed - exact, probed_nats - exact_nats, rtol=0, atol=1e-9)
