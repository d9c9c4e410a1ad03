import pytest
import torch
import torch.nn.functional as F

from flowmatch.networks.resampling import DownsampleConv, downsample, upsample

TAPS = {"box": [1, 1], "fir": [1, 3, 3, 1]}
KINDS = pytest.mark.parametrize("kind", TAPS)


def images(*shape):
    g = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def kernel(kind, channels):
    taps = torch.tensor(TAPS[kind], dtype=torch.float64)
    return (taps.outer(taps) / taps.sum() ** 2).expand(channels, 1, -1, -1)


def ramp(height, width):
    return (torch.arange(height)[:, None] + 10.0 * torch.arange(width))[None, None].double()


@KINDS
def test_downsample_is_a_strided_convolution(kind):
    x = images(2, 3, 8, 12)
    padding = len(TAPS[kind]) // 2 - 1
    expected = F.conv2d(x, kernel(kind, 3), stride=2, padding=padding, groups=3)
    torch.testing.assert_close(downsample(x, kind), expected)


@KINDS
def test_upsample_is_a_transposed_convolution(kind):
    x = images(2, 3, 4, 6)
    padding = len(TAPS[kind]) // 2 - 1
    expected = F.conv_transpose2d(x, 4 * kernel(kind, 3), stride=2, padding=padding, groups=3)
    torch.testing.assert_close(upsample(x, kind), expected)


@KINDS
def test_upsample_is_the_adjoint_of_downsample_up_to_its_gain(kind):
    x, y = images(1, 2, 8, 8), images(1, 2, 4, 4)
    torch.testing.assert_close((downsample(x, kind) * y).sum(), (x * upsample(y, kind)).sum() / 4)


def test_fir_of_one_row_by_hand():
    x = torch.tensor([0.0, 0, 8, 0, 0, 0]).repeat(6, 1)[None, None]
    torch.testing.assert_close(downsample(x, "fir")[0, 0, 1], torch.tensor([1.0, 3, 0]))
    y = torch.tensor([0.0, 4, 0]).repeat(3, 1)[None, None]
    torch.testing.assert_close(upsample(y, "fir")[0, 0, 2], torch.tensor([0.0, 1, 3, 3, 1, 0]))


@KINDS
def test_constant_images_stay_constant_inside_the_border(kind):
    x = torch.full((1, 1, 8, 8), 0.7)
    border = len(TAPS[kind]) // 2 - 1
    for y in (downsample(x, kind), upsample(x, kind)):
        inside = y[..., border : y.shape[2] - border, border : y.shape[3] - border]
        torch.testing.assert_close(inside, torch.full_like(inside, 0.7))


def test_fir_keeps_a_ramp_where_it_was_down_and_up_and_up_and_down():
    x = ramp(16, 12)
    for y in (upsample(downsample(x, "fir"), "fir"), downsample(upsample(x, "fir"), "fir")):
        torch.testing.assert_close(y[..., 4:-4, 4:-4], x[..., 4:-4, 4:-4])


def test_box_up_and_down_is_the_identity():
    x = images(1, 2, 4, 4)
    torch.testing.assert_close(downsample(upsample(x, "box"), "box"), x)


@KINDS
def test_downsample_conv_is_a_convolution_and_then_downsample(kind):
    layer = DownsampleConv(2, 5, kind=kind).double()
    x = images(1, 2, 8, 8)
    wide = F.conv2d(F.pad(x, [8] * 4), layer.weight, padding=1)  # its border reaches outside
    expected = downsample(wide, kind)[..., 4:-4, 4:-4] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


@KINDS
def test_memory_format_and_dtype_stay(kind):
    x = images(2, 4, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    for y in (downsample(x, kind), upsample(x, kind)):
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert y.dtype == torch.bfloat16
