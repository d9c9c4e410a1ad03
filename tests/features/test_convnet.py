"""The convolutional net: any size of image, bounded cost, images treated one by one."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowmatch.features.convnet import LEAST_STD, Architecture, ConvNet

SHAPES = [
    (1, 4, 4), (1, 5, 7), (3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 33, 33), (1, 64, 50),
    (3, 128, 128), (3, 256, 256), (1, 8, 512), (1, 128, 16),
]  # fmt: skip


def made(shape, outputs=3) -> ConvNet:
    return ConvNet(Architecture(shape=shape, outputs=outputs)).eval()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_image_fits_at_a_bounded_cost(shape):
    net = made(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        means = net.means(torch.rand(1, *shape))
    assert means.shape == (1, net.dims) == (1, 112)
    assert net.logits(means).shape == (1, 3)
    assert means.isfinite().all()
    assert counter.get_total_flops() / 2 < 20e6  # multiply-adds


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_pixel_is_overlooked_but_a_rest_below_one_stride(shape):
    net = made(shape)
    x = torch.rand(1, *shape, requires_grad=True)
    net.means(x).square().sum().backward()
    _, height, width = shape
    stride = Architecture(shape=shape, outputs=3).stride
    inner = x.grad[..., : height - height % stride, : width - width % stride]
    assert (inner.abs().sum((0, 1)) > 0).all()


def test_an_image_does_not_depend_on_its_batch():
    net, x = made((3, 8, 8)).double(), torch.rand(5, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net.means(x)[2:3], net.means(x[2:3]), rtol=1e-12, atol=1e-14)


def test_standardised_vectors_have_mean_zero_and_variance_one():
    net = made((1, 8, 8))
    means = 3 + 2 * torch.randn(500, net.dims, dtype=torch.float64) * torch.linspace(1, 2, net.dims)
    net.standardise(means.split(64))
    vectors = net.vectors(means)
    torch.testing.assert_close(vectors.mean(0), torch.zeros_like(vectors[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.std(0), torch.ones_like(vectors[0]), atol=1e-5, rtol=0)


def test_a_feature_that_hardly_varies_is_not_blown_up():
    net = made((1, 8, 8))
    means = torch.randn(4_000, net.dims, dtype=torch.float64)
    means[:, 7], means[:, 8] = 5, 5 + 1e-9 * means[:, 8]
    net.standardise([means])
    torch.testing.assert_close(net.scale[7:9], torch.full((2,), 1 / LEAST_STD), rtol=0.05, atol=0)
    net.standardise([torch.ones(4, net.dims)])
    assert net.scale.isfinite().all()


@pytest.mark.parametrize("shape", [(2,), (4, 8, 8), (1, 3, 8), (2, 8, 8)])
def test_other_data_are_refused(shape):
    with pytest.raises(ValueError, match="images of 1 or 3 channels and at least 4x4 pixels"):
        Architecture(shape=shape, outputs=3)


def test_one_class_is_none():
    with pytest.raises(ValueError, match="no classifier"):
        Architecture(shape=(1, 8, 8), outputs=1)
