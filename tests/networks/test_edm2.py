import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowmatch.networks import EDM2Config, NetworkConfig
from flowmatch.networks.conditions import Scalar, Vector
from flowmatch.networks.edm2_blocks import (
    DecoderBlock,
    EncoderBlock,
    MPAttention,
    MPBranch,
)
from flowmatch.networks.magnitude import MPConv, MPWeight
from flowmatch.training.ema import EMA

SMALL = {
    "channels": 32,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_resolutions": (4,),
    "head_channels": 16,
}
SHAPE = (3, 8, 8)


def a_network(seed=0, gain=0.5, **options):
    """A network in float64 away from its start at zero."""
    torch.manual_seed(seed)
    net = EDM2Config(**SMALL | options).build(SHAPE).double()
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(gain)
    return net


def a_batch(shape=SHAPE, size=4):
    torch.manual_seed(1)
    return torch.randn(size, *shape, dtype=torch.float64), torch.rand(size, dtype=torch.float64)


def rms(x):
    return x.square().mean().sqrt().item()


def weights_of(net):
    return {name: m.weight for name, m in net.named_modules() if isinstance(m, MPWeight)}


@pytest.mark.parametrize(
    ("size", "millions"),
    [("XS", 124.7), ("S", 280.2), ("M", 497.8), ("L", 777.5), ("XL", 1119.3), ("XXL", 1523.2)],
)
def test_sizes_have_the_published_numbers_of_parameters(size, millions):
    with torch.device("meta"):
        net = EDM2Config(size=size, num_classes=1000).build((4, 64, 64))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    assert round(parameters / 1e6, 1) == millions


def test_size_gives_the_channels_that_are_not_given():
    assert EDM2Config().widths[0] == 192
    assert EDM2Config(size="M").widths[0] == 256
    assert EDM2Config(size="M", channels=64).widths[0] == 64
    assert replace(EDM2Config(size="M"), size="XL").widths[0] == 384
    adapter = TypeAdapter(NetworkConfig)
    assert adapter.validate_python({"kind": "edm2", "size": "L"}) == EDM2Config(size="L")


def test_starts_at_zero():
    x, t = a_batch()
    net = EDM2Config(**SMALL).build(SHAPE).double()
    assert torch.equal(net(x, t), torch.zeros_like(x))


def test_no_parameter_is_a_bias_or_belongs_to_a_norm():
    net = a_network(num_classes=5)
    branches = [name for name, module in net.named_modules() if isinstance(module, MPBranch)]
    gains = {"gain", *(f"{name}.gain" for name in branches)}
    weights = {f"{name}.weight" for name in weights_of(net)}
    assert {name for name, _ in net.named_parameters()} == gains | weights


def test_blocks_and_attention_are_where_the_config_says():
    config = EDM2Config(
        channels=32,
        multipliers=(1, 1, 2),
        blocks=2,
        attention_resolutions=(16, 4),
        head_channels=16,
    )
    net = config.build((1, 16, 16))
    has = [isinstance(block.attention, MPAttention) for block in net.encoder]
    assert has == [True] * 2 + [False] * 4 + [True] * 2
    has = [isinstance(block.attention, MPAttention) for block in net.decoder]
    assert has == [True, False] + [True] * 3 + [False] * 5 + [True] * 3
    skips = [block.takes_skip for block in net.decoder]
    assert skips == [False] * 2 + ([True] * 3 + [False]) * 2 + [True] * 3
    assert {m.heads for m in net.modules() if isinstance(m, MPAttention)} == {2, 4}


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_activations_keep_magnitude_one_through_the_network(gain):
    net = a_network(
        gain=gain, channels=64, multipliers=(1, 2, 3), blocks=2, attention_resolutions=(4,)
    )
    net.gain.data.fill_(1)
    magnitudes = {}
    for name, module in net.named_modules():
        if isinstance(module, (EncoderBlock, DecoderBlock)) or name in ("conv_in", "conv_out"):
            module.register_forward_hook(lambda *a, n=name: magnitudes.update({n: rms(a[-1])}))
    torch.manual_seed(1)
    with torch.no_grad():
        net(torch.randn(8, 3, 16, 16).double(), torch.rand(8).double())
    assert len(magnitudes) == 2 + 8 + 13
    # zeros beyond the border and the mean that attention takes cost a little
    assert all(0.75 < magnitude < 1.1 for magnitude in magnitudes.values()), magnitudes


def test_output_is_blind_to_the_scale_of_any_weight():
    net, (x, t) = a_network(num_classes=5).eval(), a_batch()
    out = net(x, t)
    for weight in weights_of(net).values():
        weight.data *= 10
    torch.testing.assert_close(net(x, t), out)


def test_a_training_step_leaves_unit_weights_and_orthogonal_gradients():
    net, (x, t) = a_network(num_classes=5), a_batch()
    for weight in weights_of(net).values():
        weight.data *= 3
    net(x, t, {"label": torch.tensor([0, 5, 2, 2])}).pow(3).sum().backward()
    for name, weight in weights_of(net).items():
        magnitude = weight.detach().flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(magnitude, torch.ones_like(magnitude), msg=name)
        cosine = F.cosine_similarity(weight.detach().flatten(1), weight.grad.flatten(1))
        assert cosine.abs().max() < 1e-9, name


def test_average_of_weights_is_evaluated_without_being_changed():
    net, (x, t) = a_network(), a_batch()
    ema = EMA(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x, t) - x).square().mean().backward()
        optimizer.step()
        ema.update(0.5)
    before = copy.deepcopy(ema.module.state_dict())
    out = ema.module(x, t)
    torch.testing.assert_close(ema.module.state_dict(), before, rtol=0, atol=0)
    plain = copy.deepcopy(ema.module)
    for weight in weights_of(plain).values():
        weight.data /= weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
    torch.testing.assert_close(plain(x, t), out)
    assert not torch.allclose(net.eval()(x, t), out, rtol=1e-3)


def test_a_channel_of_ones_stands_for_the_biases():
    net, (x, t) = a_network(), a_batch()
    assert net(torch.zeros_like(x), t).abs().min() > 0


def test_attention_is_that_of_cosines():
    torch.manual_seed(0)
    layer = MPAttention(12, heads=3).double()
    x = torch.randn(2, 12, 3, 2, dtype=torch.float64)
    w_qkv, w_o = (w / w.norm(dim=1, keepdim=True) for w in (layer.qkv.weight, layer.proj.weight))
    qkv = torch.einsum("oc,bcp->bop", w_qkv, x.flatten(2)).view(2, 3, 3, 4, 6)
    q, k, v = (qkv / qkv.square().mean(3, keepdim=True).sqrt()).unbind(1)
    weights = torch.softmax(torch.einsum("bhcp,bhcr->bhpr", q, k) / math.sqrt(4), dim=-1)
    h = torch.einsum("bhpr,bhcr->bhcp", weights, v).reshape(2, 12, 6)
    expected = (0.7 * x + 0.3 * (w_o @ h).view_as(x)) / math.sqrt(0.58)
    torch.testing.assert_close(layer(x), expected)


def test_attention_over_one_pixel_keeps_magnitude():
    torch.manual_seed(0)
    layer = MPAttention(64, heads=4).double()
    x = torch.randn(500, 64, 1, 1, dtype=torch.float64)
    assert rms(layer(x)) == pytest.approx(1, abs=0.03)


@torch.no_grad()
def test_branch_and_blocks_are_their_formulas():
    torch.manual_seed(0)
    options = {"embedding": 5, "dropout": 0.0}
    x, skip = torch.randn(2, 6, 4, 4), torch.randn(2, 2, 4, 4)
    e = torch.randn(2, 5)

    def branch(block, x):
        b = block.branch
        factor = 1 + 0.7 * e @ (b.embed.weight / b.embed.weight.norm(dim=1, keepdim=True)).t()
        h = b.conv_in(F.silu(x) / 0.596) * factor[:, :, None, None]
        return b.conv_out(F.silu(h) / 0.596)

    encoder, decoder = EncoderBlock(6, 8, **options), DecoderBlock(6, 4, skip=2, **options)
    for block in (encoder, decoder):
        block.branch.gain.fill_(0.7)
    main = encoder.project(x)
    main = main / main.square().mean(1, keepdim=True).sqrt()
    expected = (0.7 * main + 0.3 * branch(encoder, main)) / math.sqrt(0.58)
    torch.testing.assert_close(encoder(x, e), expected)
    both = torch.cat([x / math.sqrt(6), skip / math.sqrt(2)], 1) * math.sqrt(8 / 2)
    expected = (0.7 * decoder.project(both) + 0.3 * branch(decoder, both)) / math.sqrt(0.58)
    torch.testing.assert_close(decoder(x, e, skip), expected)


def test_embedding_has_magnitude_one_with_and_without_classes():
    t = torch.linspace(0, 1, 500, dtype=torch.float64)
    x = torch.zeros(500, *SHAPE)
    for classes in (None, 10):
        embedding = a_network(channels=256, num_classes=classes).embedding
        labels = None if classes is None else torch.arange(500) % (classes + 1)
        assert rms(embedding(t, labels, None, x)) == pytest.approx(1, abs=0.1)


def test_other_conditions_are_bounded_and_a_zero_stays_zero():
    conditions = {"angle": Scalar(), "turn": Vector(dim=2, when_absent="zero")}
    net = a_network(conditions=conditions).float()
    x, t = (values.float() for values in a_batch())
    assert set(net.nulls) == {"angle", "turn"}
    turn = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    outs = [net(x, t, cond) for cond in (None, {"turn": turn}, {"turn": 2 * turn})]
    torch.testing.assert_close(net(x, t, {"turn": 0 * turn}), outs[0])
    assert (outs[1] - outs[0]).abs().max() > 1e-3
    assert (outs[2] - outs[1]).abs().max() > 1e-3  # its length is heard
    assert rms(net.embedding(t, None, {"turn": 1e6 * turn}, x)) < 1.5


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}], ids=["plain", "dropout"])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(options):
    results = []
    for checkpointing in (False, True):
        net = a_network(gradient_checkpointing=checkpointing, **options)
        batch = a_batch()
        torch.manual_seed(2)  # of the dropout
        loss = net(*batch).square().mean()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in net.parameters())])
    torch.testing.assert_close(results[1], results[0])


def test_forward_mode_derivative_in_time_in_training_mode():
    net, (x, t), h = a_network(), a_batch(), 1e-6
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = torch.func.jvp(lambda t: net(x, t), (t,), (torch.ones_like(t),))
    difference = (net(x, t + h) - net(x, t - h)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-6)


def test_images_need_not_be_square_and_channels_last_changes_nothing():
    torch.manual_seed(0)
    net = EDM2Config(**SMALL).build((3, 8, 12)).double()
    net.gain.data.fill_(1)
    x, t = a_batch((3, 8, 12))
    out = net(x, t)
    assert out.shape == x.shape

    def check(module, _args, out):
        assert out.ndim != 4 or out.is_contiguous(memory_format=torch.channels_last), module

    net.to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, (MPConv, EncoderBlock, DecoderBlock)):
            module.register_forward_hook(check)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last), t), out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "XXXL"}, "XS, S, M, L, XL, XXL, or None"),
        ({"channels": 0}, "channels is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"head_channels": 0}, "head_channels is 0"),
        ({"multipliers": ()}, "at least one"),
        ({"dropout": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EDM2Config(**options)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2,), r"shape \(C, H, W\), got \(2,\)"),
        ({}, (1, 28, 28), "28 is not divisible by 8"),
        ({}, (3, 32, 32), None),
        ({}, (3, 256, 256), r"attention_resolutions has \[16, 8\]"),
        ({"channels": 40}, (3, 32, 32), "80 channels cannot have heads of 64"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options, shape, message):
    with torch.device("meta"):
        if message is None:
            EDM2Config(**options).build(shape)
            return
        with pytest.raises(ValueError, match=message):
            EDM2Config(**options).build(shape)
