import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowmatch.networks import Dropout, UNet, UNetConfig
from flowmatch.networks.attention import AttentionBlock
from flowmatch.networks.residual import ResidualBlock
from flowmatch.randomness import Rows

SMALL = {"channels": 48, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}


def perturbed(config, shape=(3, 8, 8)):
    torch.manual_seed(0)
    net = config.build(shape)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def a_batch(shape=(3, 8, 8), size=4):
    torch.manual_seed(1)
    return torch.randn(size, *shape), torch.rand(size)


def gradients(net, seed=2):
    torch.manual_seed(seed)  # of the dropout
    net.zero_grad()
    loss = net(*a_batch()).square().mean()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in net.parameters()]


def test_cifar10_size_is_the_fields():
    config = UNetConfig(channels=128, multipliers=(1, 2, 2, 2), blocks=2)
    with torch.device("meta"):
        net = config.build((3, 32, 32))
    assert sum(parameter.numel() for parameter in net.parameters()) == 35_746_307


def test_starts_at_zero():
    x, t = a_batch()
    assert torch.equal(UNet((3, 8, 8), UNetConfig(**SMALL))(x, t), torch.zeros_like(x))


def test_attention_is_where_the_config_says():
    config = UNetConfig(channels=32, multipliers=(1, 1, 1), blocks=2, attention_resolutions=(16, 4))
    net = config.build((1, 16, 16))
    has = [any(isinstance(block, AttentionBlock) for block in stage) for stage in net.input_blocks]
    assert has == [False, True, True, False, False, False, False, True, True]
    has = [any(isinstance(block, AttentionBlock) for block in stage) for stage in net.output_blocks]
    assert has == [True] * 3 + [False] * 3 + [True] * 3
    kinds = [type(block) for block in net.middle_block]
    assert kinds == [ResidualBlock, AttentionBlock, ResidualBlock]


def test_head_channels_fixes_the_width_of_a_head():
    net = UNetConfig(**SMALL, head_channels=16).build((3, 8, 8))
    assert {m.heads for m in net.modules() if isinstance(m, AttentionBlock)} == {96 // 16}
    assert UNetConfig().heads == 4


def test_images_need_not_be_square():
    x, t = a_batch((3, 8, 12))
    assert perturbed(UNetConfig(**SMALL), (3, 8, 12))(x, t).shape == x.shape


@pytest.mark.parametrize("scale_shift", [False, True])
def test_channels_last_stays_so_and_changes_nothing(scale_shift):
    net = perturbed(UNetConfig(**SMALL, scale_shift=scale_shift)).double().eval()
    x, t = a_batch()
    expected = net(x.double(), t.double())

    def check(module, _args, out):
        assert out.ndim != 4 or out.is_contiguous(memory_format=torch.channels_last), module

    net.to(memory_format=torch.channels_last)
    for module in net.modules():
        module.register_forward_hook(check)
    out = net(x.double().to(memory_format=torch.channels_last), t.double())
    torch.testing.assert_close(out, expected)


def test_dropout_is_active_in_training_mode_only():
    net, (x, t) = perturbed(UNetConfig(**SMALL, dropout=0.5)), a_batch()
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


def test_gradient_checkpointing_changes_neither_loss_nor_gradients():
    options = {**SMALL, "dropout": 0.3}
    loss, grads = gradients(perturbed(UNetConfig(**options)))
    again, grads_again = gradients(perturbed(UNetConfig(**options, gradient_checkpointing=True)))
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(grads_again, grads)


def test_forward_mode_derivative_in_time():
    net = perturbed(UNetConfig(**SMALL, scale_shift=True)).double()
    x, t = a_batch()
    x, t, h = x.double(), t.double(), 1e-6
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = torch.func.jvp(lambda t: net(x, t), (t,), (torch.ones_like(t),))
    difference = (net(x, t + h) - net(x, t - h)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradient_checkpointing_computes_blocks_twice(gradient_checkpointing):
    net = perturbed(UNetConfig(**SMALL, gradient_checkpointing=gradient_checkpointing))
    calls = []
    for block in net.middle_block:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(net)
    assert len(calls) == (6 if gradient_checkpointing else 3)
    calls.clear()
    with torch.no_grad():
        net(*a_batch())
    assert len(calls) == 3


def test_norms_have_32_groups_where_they_can():
    config = UNetConfig(channels=48, multipliers=(1, 2), blocks=1, attention_resolutions=())
    norms = [m for m in config.build((1, 8, 8)).modules() if isinstance(m, nn.GroupNorm)]
    assert {(norm.num_channels, norm.num_groups) for norm in norms} == {
        (48, 16), (96, 32), (144, 16), (192, 32)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4, "head_channels": 32}, "heads is 4 and head_channels is 32"),
        ({"channels": 0}, "channels is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"multipliers": ()}, "at least one"),
        ({"multipliers": (1, 0)}, "each at least 1"),
        ({"dropout": 1.0}, r"must be in \[0, 1\)"),
        ({"qkv_order": "old"}, "'new' or 'legacy'"),
        ({"dropout": -0.1}, r"must be in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**options)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2,), r"shape \(C, H, W\), got \(2,\)"),
        ({}, (1, 28, 28), "28 is not divisible by 8.*24 or 32"),
        ({}, (1, 32, 4), "4 is not divisible by 8.*to 8"),
        ({"attention_resolutions": (2,)}, (3, 32, 32), r"\[2\].*\[32, 16, 8, 4\]"),
        ({"heads": 3}, (3, 32, 32), "cannot have 3 heads"),
        ({"head_channels": 60}, (3, 32, 32), "cannot have heads of 60"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options, shape, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        UNetConfig(**options).build(shape)


def test_dropout_masks_belong_to_the_row_and_survive_recomputation():
    layer = Dropout(0.25)
    x = torch.ones(100, 4, 3, 3)
    layer.rows = Rows((1, 2), 0, 100)
    whole = layer(x)
    assert torch.equal(layer(x), whole)  # recomputed activations see the same mask
    torch.testing.assert_close(whole.unique(), torch.tensor([0, 1 / 0.75]))
    assert whole.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    layer.rows = Rows((1, 2), 40, 70)
    assert torch.equal(layer(x[40:70]), whole[40:70])
    layer.rows = Rows((1, 3), 0, 100)
    assert not torch.equal(layer(x), whole)
    assert torch.equal(layer.eval()(x), x)
