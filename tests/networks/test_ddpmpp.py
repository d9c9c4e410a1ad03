import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowmatch.networks import DDPMPPConfig
from flowmatch.networks.conditions import Scalar, Vector

SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
AUGMENT = {"augment": Vector(dim=9, when_absent="zero")}
SHAPE = (3, 8, 8)
VARIANTS = pytest.mark.parametrize("size", ["cifar10", "ncsnpp-cifar10"])


def perturbed(config):
    torch.manual_seed(0)
    net = config.build(SHAPE)
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return net


def a_batch(size=4):
    torch.manual_seed(1)
    return torch.randn(size, *SHAPE), torch.rand(size)


def test_skip_scaling_keeps_the_variance_of_a_sum():
    torch.manual_seed(0)
    block = DDPMPPConfig(**SMALL).block(32, 32)
    x, embedding = torch.randn(16, 32, 16, 16), torch.randn(16, 128)
    with torch.no_grad():
        assert (block(x, embedding) - math.sqrt(0.5) * x).abs().max() < 1e-3  # starts as the skip
        block.conv_out.weight.mul_(1e5)
        branch = block(x, embedding) / math.sqrt(0.5) - x
        block.conv_out.weight.div_(branch.std())
        assert block(x, embedding).var().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_attention_starts_as_its_skip_too(resample):
    torch.manual_seed(0)
    config = DDPMPPConfig(**SMALL)
    x, embedding = torch.randn(2, 32, 4, 4), torch.randn(2, 128)
    with_attention = config.block(32, 32, resample=resample, attention=True)
    without = config.block(32, 32, resample=resample)
    without.load_state_dict(with_attention.state_dict(), strict=False)
    difference = with_attention(x, embedding) - math.sqrt(0.5) * without(x, embedding)
    assert 0 < difference.abs().max() < 1e-3


def test_initialisation_has_the_gains_of_the_paper():
    torch.manual_seed(0)
    block = DDPMPPConfig(channels=128).block(128, 128, attention=True)

    def gain(weight):
        fan_in = weight[0].numel()
        fan_out = weight.numel() // weight.shape[1]
        return (weight.std() / math.sqrt(2 / (fan_in + fan_out))).item()

    assert gain(block.conv_in.weight) == pytest.approx(1, rel=0.02)
    assert gain(block.affine.weight) == pytest.approx(1, rel=0.02)
    assert gain(block.conv_out.weight) == pytest.approx(1e-5, rel=0.02)
    assert gain(block.attention.qkv.weight) == pytest.approx(math.sqrt(0.2), rel=0.02)
    assert gain(block.attention.proj_out.weight) == pytest.approx(1e-5, rel=0.02)
    assert all(p.eq(0).all() for name, p in block.named_parameters() if name.endswith("bias"))


@VARIANTS
def test_output_starts_near_zero(size):
    torch.manual_seed(0)
    out = DDPMPPConfig(**SMALL, size=size).build(SHAPE)(*a_batch())
    assert 0 < out.abs().max() < 1e-3


def test_attention_is_after_each_block_down_and_after_the_last_up():
    config = DDPMPPConfig(
        channels=32, multipliers=(1, 1, 1), blocks=2, attention_resolutions=(16, 4)
    )
    net = config.build((1, 16, 16))

    def signs(blocks):
        names = {None: "", "down": "down ", "up": "up "}
        return [
            names[block.resample] + "attention" * (not isinstance(block.attention, nn.Identity))
            for block in blocks
        ]

    attended = ["attention", "attention"]
    assert signs(net.encoder) == [*attended, "down ", "", "", "down ", *attended]
    assert signs(net.middle) == ["attention", ""]
    assert signs(net.decoder) == [
        "", "", "attention", "up ", "", "", "", "up ", "", "", "attention"
    ]  # fmt: skip
    assert net.middle[0].attention.heads == 1


def test_norms_have_groups_of_at_least_four_channels():
    config = DDPMPPConfig(channels=48, multipliers=(1, 2), blocks=1, attention_resolutions=())
    norms = [m for m in config.build((1, 8, 8)).modules() if isinstance(m, nn.GroupNorm)]
    assert {(norm.num_channels, norm.num_groups) for norm in norms} == {
        (48, 12), (96, 24), (144, 24), (192, 32)
    }  # fmt: skip
    assert {norm.eps for norm in norms} == {1e-6}


def test_residual_encoder_adds_the_image_to_each_level():
    config = DDPMPPConfig(**SMALL, size="ncsnpp-cifar10", dropout=0.0)
    net, (x, t) = config.build(SHAPE), a_batch()
    seen = {}
    net.encoder[1].register_forward_hook(lambda *args: seen.update(down=args[2]))
    net.pyramid[0].register_forward_hook(lambda *args: seen.update(image=args[1][0], side=args[2]))
    net.encoder[2].register_forward_hook(lambda *args: seen.update(next=args[1][0]))
    net(x, t)
    assert torch.equal(seen["image"], x)
    torch.testing.assert_close(seen["next"], (seen["down"] + seen["side"]) / math.sqrt(2))
    assert len(net.pyramid) == 1
    assert len(DDPMPPConfig(**SMALL).build(SHAPE).pyramid) == 0


@VARIANTS
def test_a_zero_vector_of_augmentation_is_none(size):
    net = perturbed(DDPMPPConfig(**SMALL, size=size, conditions=AUGMENT)).eval()
    x, t = a_batch()
    assert net.nulls == {"augment": 0.0}
    plain = net(x, t)
    assert torch.equal(net(x, t, {"augment": torch.zeros(4, 9)}), plain)
    one = torch.zeros(4, 9)
    one[2, 3] = 1
    changed = (net(x, t, {"augment": one}) - plain).flatten(1).abs().amax(1)
    assert changed.gt(1e-6).tolist() == [False, False, True, False]


def test_conditions_beside_classes():
    net = perturbed(DDPMPPConfig(**SMALL, num_classes=3, conditions={"age": Scalar()})).eval()
    x, t = a_batch()
    label, age = torch.tensor([0, 1, 2, 3]), torch.tensor([0.1, math.nan, 0.5, 0.9])
    out = net(x, t, {"label": label, "age": age})
    torch.testing.assert_close(net(x, t, {"label": label})[1], out[1])
    assert not torch.allclose(net(x, t, {"age": age})[0], out[0])


def test_null_class_starts_without_effect():
    net, (x, t) = DDPMPPConfig(**SMALL, num_classes=10).build(SHAPE).eval(), a_batch()
    assert torch.equal(net.embed.label_emb.weight[10], torch.zeros(32))
    std = net.embed.label_emb.weight[:10].std().item()
    assert std == pytest.approx(math.sqrt(10 * 2 / (10 + 32)), rel=0.1)
    assert not torch.equal(net(x, t, {"label": torch.zeros(4, dtype=torch.long)}), net(x, t))


@VARIANTS
@pytest.mark.parametrize("scale_shift", [False, True])
def test_channels_last_stays_so_and_changes_nothing(size, scale_shift):
    net = perturbed(DDPMPPConfig(**SMALL, size=size, scale_shift=scale_shift)).double().eval()
    x, t = a_batch()
    expected = net(x.double(), t.double())

    def check(module, _args, out):
        assert out.ndim != 4 or out.is_contiguous(memory_format=torch.channels_last), module

    net.to(memory_format=torch.channels_last)
    for module in net.modules():
        module.register_forward_hook(check)
    out = net(x.double().to(memory_format=torch.channels_last), t.double())
    torch.testing.assert_close(out, expected)


def gradients(net):
    torch.manual_seed(2)  # of the dropout
    loss = net(*a_batch()).square().mean()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in net.parameters()]


@VARIANTS
def test_gradient_checkpointing_computes_twice_and_changes_nothing(size):
    config = DDPMPPConfig(**SMALL, size=size, dropout=0.3)
    loss, grads = gradients(perturbed(config))
    net, calls = perturbed(replace(config, gradient_checkpointing=True)), []
    net.middle[0].register_forward_pre_hook(lambda *_: calls.append(1))
    again, grads_again = gradients(net)
    assert len(calls) == 2
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(grads_again, grads)


@VARIANTS
def test_forward_mode_derivative_in_time(size):
    net = perturbed(DDPMPPConfig(**SMALL, size=size)).double().eval()
    x, t = a_batch()
    x, t, h = x.double(), t.double(), 1e-6
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = torch.func.jvp(lambda t: net(x, t), (t,), (torch.ones_like(t),))
    difference = (net(x, t + h) - net(x, t - h)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "cifar"}, "size is 'cifar'; it must be one of 'cifar10'"),
        ({"embedding": "sines"}, "'positional', 'fourier'"),
        ({"encoder": "skip"}, "'standard', 'residual'"),
        ({"resample": "bilinear"}, "'box', 'fir'"),
        ({"channels": 0}, "channels is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"multipliers": ()}, "at least one"),
        ({"dropout": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DDPMPPConfig(**options)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2,), r"shape \(C, H, W\), got \(2,\)"),
        ({}, (1, 30, 30), "30 is not divisible by 4.*28 or 32"),
        ({"attention_resolutions": (4,)}, (3, 32, 32), r"\[4\].*\[32, 16, 8\]"),
        ({"heads": 3}, (3, 32, 32), "cannot have 3 heads"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options, shape, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DDPMPPConfig(**options).build(shape)
