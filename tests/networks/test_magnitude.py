"""Each layer keeps the magnitude of its input; weights are forced to have magnitude 1."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from flowmatch.networks.magnitude import (
    SILU_MAGNITUDE,
    MPClassEmbedding,
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    pixel_norm,
)

WEIGHTED = {
    "linear": (lambda: MPLinear(12, 8), (6, 12)),
    "conv": (lambda: MPConv(5, 7, kernel=3), (6, 5, 4, 4)),
}


def each_weighted():
    return pytest.mark.parametrize(("layer", "shape"), WEIGHTED.values(), ids=WEIGHTED.keys())


def normals(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def rms(x):
    return x.square().mean().sqrt().item()


def near_one(values):
    """The magnitude of so many standard normals lies within four of its standard deviations."""
    return pytest.approx(1, abs=4 / math.sqrt(2 * values))


def rms_of_outputs(weight):
    return weight.flatten(1).square().mean(1).sqrt()


def test_normalize_gives_magnitude_one_whatever_the_scale():
    x = normals(6, 8, 3, 3)
    expected = x / x.square().mean((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(normalize(x, (1, 2, 3)), expected)
    torch.testing.assert_close(normalize(1e-3 * x, (1, 2, 3)), expected)
    assert rms(pixel_norm(x)[2, :, 1, 2]) == pytest.approx(1)
    assert torch.equal(normalize(torch.zeros(2, 3), 1), torch.zeros(2, 3))


def test_normalize_takes_the_mean_of_half_precision_in_float32():
    x = 300 * torch.ones(1, 4096, dtype=torch.float16)  # its squares are no float16
    assert torch.equal(normalize(x, 1), torch.ones_like(x))


def test_silu_magnitude_is_its_integral():
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    square = torch.trapezoid(F.silu(z).square() * density, z)
    assert square.sqrt().item() == pytest.approx(SILU_MAGNITUDE, abs=5e-4)
    assert rms(mp_silu(normals(100_000))) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sum_keeps_magnitude_and_weighs_by_t(t):
    a, b = normals(50_000), normals(50_000, seed=1)
    out = mp_sum(a, b, t=t)
    assert rms(out) == near_one(50_000)
    ratio = (out @ b / b.square().sum()).item() / math.hypot(1 - t, t)
    assert ratio == pytest.approx(t / ((1 - t) ** 2 + t**2), abs=0.03)


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_cat_keeps_magnitude_and_shares_it_by_t(t):
    a, b = pixel_norm(normals(100, 6, 5, 5)), pixel_norm(normals(100, 30, 5, 5, seed=1))
    out = mp_cat(a, b, t=t)
    assert rms(out) == pytest.approx(1)
    share = out[:, 6:].square().sum() / out.square().sum()
    assert share.item() == pytest.approx(t**2 / ((1 - t) ** 2 + t**2))
    torch.testing.assert_close(pixel_norm(out[:, :6]), a)


def test_fourier_features_have_magnitude_one_at_every_time():
    torch.manual_seed(0)
    fourier = MPFourier(20_000, scale=4.0).double()
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    out = fourier(t)
    for row in out:
        assert rms(row) == pytest.approx(1, abs=4 / math.sqrt(8 * 20_000))  # var cos^2 = 1/8
    angle = 2 * math.pi * (4.0 * t[3] * fourier.frequencies[7] + fourier.phases[7])
    torch.testing.assert_close(out[3, 7], math.sqrt(2) * angle.cos())
    assert set(fourier.state_dict()) == {"frequencies", "phases"}


def test_linear_keeps_magnitude():
    torch.manual_seed(0)
    assert rms(MPLinear(64, 48).double()(normals(2_000, 64))) == near_one(2_000 * 48 / 4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_keeps_magnitude_away_from_the_border(kernel):
    torch.manual_seed(0)
    out = MPConv(16, 24, kernel=kernel).double()(normals(40, 16, 16, 16))
    assert out.shape == (40, 24, 16, 16)
    assert rms(out[:, :, 1:-1, 1:-1]) == near_one(40 * 24 * 14 * 14 / 16)


def test_class_embedding_is_the_product_with_one_hot_vectors():
    torch.manual_seed(0)
    embedding = MPClassEmbedding(9, 400).double()
    labels = torch.tensor([3, 9, 0, 3])
    out = embedding(labels)
    one_hot = F.one_hot(labels, 10).double() * math.sqrt(10)
    unit = embedding.weight / embedding.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(out, one_hot @ unit.t())
    assert rms(embedding(torch.arange(10))) == pytest.approx(1)
    assert rms(out[1]) == pytest.approx(1, abs=0.1)  # the null class is as loud as the others


@each_weighted()
def test_output_is_linear_in_the_gain_and_blind_to_the_scale_of_weights(layer, shape):
    torch.manual_seed(0)
    net = layer().double().eval()
    out = net(normals(*shape))
    torch.testing.assert_close(net(normals(*shape), torch.tensor(0.3).double()), 0.3 * out)
    net.weight.data *= 10
    torch.testing.assert_close(net(normals(*shape)), out)
    net.weight.data[0] *= 1e-2  # one output alone
    torch.testing.assert_close(net(normals(*shape)), out)


@each_weighted()
def test_training_forces_weights_to_magnitude_one_and_evaluation_leaves_them(layer, shape):
    torch.manual_seed(0)
    net = layer().double()
    net.weight.data *= torch.linspace(0.5, 20, len(net.weight)).view(-1, *[1] * (len(shape) - 1))
    before = net.weight.detach().clone()
    out = net.eval()(normals(*shape))
    assert torch.equal(net.weight, before)
    torch.testing.assert_close(net.train()(normals(*shape)), out)
    torch.testing.assert_close(
        rms_of_outputs(net.weight), torch.ones(len(before), dtype=torch.float64)
    )
    norms = net.effective().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    with torch.no_grad():  # a weight is forced wherever it is used in training mode
        net.weight.mul_(3)
        net(normals(*shape))
    torch.testing.assert_close(rms_of_outputs(net.weight), torch.ones_like(norms))


@each_weighted()
@pytest.mark.parametrize("training", [True, False])
def test_gradient_is_orthogonal_to_the_weight(layer, shape, training):
    torch.manual_seed(0)
    net = layer().double().train(training)
    net(normals(*shape)).pow(3).sum().backward()
    weight, gradient = net.weight.flatten(1), net.weight.grad.flatten(1)
    cosine = F.cosine_similarity(weight, gradient)
    torch.testing.assert_close(cosine, torch.zeros_like(cosine), rtol=0, atol=1e-12)
    assert gradient.norm() > 1


@each_weighted()
def test_gradient_is_that_of_the_plain_formula(layer, shape):
    torch.manual_seed(0)
    net = layer().double().eval()

    def evaluate(weight):
        return functional_call(net, {"weight": weight}, normals(*shape))

    assert torch.autograd.gradcheck(evaluate, net.weight)


@each_weighted()
def test_several_forward_passes_before_one_backward_pass(layer, shape):
    torch.manual_seed(0)
    net = layer().double()
    other = copy.deepcopy(net)
    a, b = normals(*shape), normals(*shape, seed=1)
    (net(a).square().sum() + net(b).square().sum()).backward()
    other(a).square().sum().backward()
    other(b).square().sum().backward()
    torch.testing.assert_close(net.weight.grad, other.weight.grad)


@each_weighted()
def test_autocast_normalises_in_full_precision(layer, shape):
    torch.manual_seed(0)
    net = layer()
    net.weight.data *= 5
    with torch.autocast("cpu", torch.bfloat16):
        out = net(normals(*shape).float())
    assert out.dtype == torch.bfloat16
    ones = torch.ones(len(net.weight))
    torch.testing.assert_close(rms_of_outputs(net.weight.detach()), ones, rtol=1e-6, atol=0)


@each_weighted()
def test_weights_are_forced_inside_transforms_too(layer, shape):
    torch.manual_seed(0)
    net, x = layer().double(), normals(*shape)
    net.weight.data *= 5
    out, slope = torch.func.jvp(net, (x,), (x,))
    torch.testing.assert_close(slope, out)
    ones = torch.ones(len(net.weight), dtype=torch.float64)
    torch.testing.assert_close(rms_of_outputs(net.weight), ones)


@each_weighted()
def test_a_weight_that_is_an_argument_is_not_written_to(layer, shape):
    torch.manual_seed(0)
    net, x = layer().double(), normals(*shape)
    given = 5 * net.weight.detach()

    def loss(weight):
        return functional_call(net, {"weight": weight}, x).pow(3).sum()

    gradient = torch.func.grad(loss)(given)
    assert torch.equal(given, 5 * net.weight)
    net.eval()
    loss(net.weight).backward()
    torch.testing.assert_close(5 * gradient, net.weight.grad)
