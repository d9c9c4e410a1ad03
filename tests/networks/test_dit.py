import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowmatch.networks import DiTConfig, NetworkConfig, dropouts_of
from flowmatch.networks.conditions import Scalar, Text
from flowmatch.networks.transformer import TransformerBlock

SMALL = {"width": 32, "depth": 2, "heads": 2}
SHAPE = (3, 8, 8)
TEXT = {"caption": Text(dim=5)}
NAN = float("nan")


def perturbed(config, shape=SHAPE):
    torch.manual_seed(0)
    net = config.build(shape)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def a_batch(shape=SHAPE, size=4, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(size, *shape, dtype=dtype), torch.rand(size, dtype=dtype)


def count(config, shape):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in config.build(shape).parameters())


def gradients(net):
    torch.manual_seed(2)  # of the dropout
    net.zero_grad()
    loss = net(*a_batch()).square().mean()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize(
    ("size", "patch", "millions"),
    [("S", 2, 33), ("B", 2, 130), ("L", 2, 458), ("XL", 2, 675), ("S", 8, 33), ("B", 4, 130)],
)
def test_named_sizes_are_the_papers(size, patch, millions):
    """Table 1 of Peebles & Xie 2023, on 4 x 32 x 32 latents of 1000 classes.

    Theirs also predict variances (twice the outputs), and keep biases in the MLP; their table of
    positions is no parameter. All this is below the rounding.
    """
    config = DiTConfig(size=size, patch=patch, num_classes=1000)
    assert round(count(config, (4, 32, 32)) / 1e6) == millions


def test_base_size_on_pixels_is_the_papers():
    """Li & He 2025: JiT-B/16 on 256 pixels has 131M parameters."""
    config = DiTConfig(size="B", patch=16, patch_rank=128, num_classes=1000)
    assert round(count(config, (3, 256, 256)) / 1e6) == 131


def test_size_fills_in_what_is_not_given():
    assert DiTConfig(size="B").dimensions == (768, 12, 12)
    assert DiTConfig(size="XL", depth=2).dimensions == (1152, 2, 16)
    assert DiTConfig().dimensions == DiTConfig(size="S").dimensions == (384, 12, 6)
    plain = {"kind": "dit", "size": "L", "heads": 8, "patch": 16}
    assert TypeAdapter(NetworkConfig).validate_python(plain).dimensions == (1024, 24, 8)


def test_starts_at_zero_with_blocks_that_are_the_identity():
    net, (x, t) = DiTConfig(**SMALL, registers=1).build(SHAPE), a_batch()
    same = []

    def compare(_block, args, out):
        same.append(torch.equal(out, args[0]))

    for block in net.blocks:
        block.register_forward_hook(compare)
    assert torch.equal(net(x, t), torch.zeros_like(x))
    assert same == [True, True]


def test_knows_where_patches_are():
    net = perturbed(DiTConfig(**SMALL, patch=4)).double()
    x, t = a_batch(dtype=torch.float64)
    swapped = torch.cat([x[..., 4:], x[..., :4]], dim=-1)
    out = net(swapped, t)
    assert not torch.allclose(torch.cat([out[..., 4:], out[..., :4]], dim=-1), net(x, t))


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 16, 4)])
def test_images_need_not_be_square_nor_of_the_size_it_was_built_for(shape):
    x, t = a_batch(shape)
    assert perturbed(DiTConfig(**SMALL, registers=1))(x, t).shape == x.shape


def test_registers_change_the_output_but_not_its_shape():
    x, t = a_batch()
    without, with_registers = (perturbed(DiTConfig(**SMALL, registers=n)) for n in (0, 3))
    for name, value in without.state_dict().items():
        with_registers.state_dict()[name].copy_(value)
    assert with_registers(x, t).shape == x.shape
    assert not torch.allclose(with_registers(x, t), without(x, t), atol=1e-4)


def pooled_alike(net):
    """Texts reach this network through the sequence alone: their pooled embedding is zero."""
    for parameter in net.cond_emb.parameters():
        nn.init.zeros_(parameter)
    return net


def test_text_tokens_change_the_output_but_not_its_shape():
    net, (x, t) = pooled_alike(perturbed(DiTConfig(**SMALL, conditions=TEXT))), a_batch()
    outs = [net(x, t, {"caption": torch.randn(4, length, 5)}) for length in (1, 3, 3)]
    outs.append(net(x, t))
    assert all(out.shape == x.shape for out in outs)
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(outs[i], outs[j], atol=1e-4)


def test_text_is_pooled_into_the_embedding_too():
    net, (x, t) = perturbed(DiTConfig(**SMALL, conditions=TEXT)), a_batch()
    for parameter in net.prefix.parameters():
        nn.init.zeros_(parameter)
    a, b = (net(x, t, {"caption": torch.randn(4, 3, 5)}) for _ in range(2))
    assert not torch.allclose(a, b, atol=1e-4)


def test_padding_has_no_effect_neither_its_values_nor_its_length():
    net = perturbed(DiTConfig(**SMALL, conditions=TEXT)).double()
    x, t = a_batch(dtype=torch.float64)
    text = torch.randn(4, 2, 5, dtype=torch.float64)
    padded = torch.cat([text, torch.full((4, 3, 5), NAN)], dim=1)
    other = padded.clone()
    other[:, 2:, 1:] = 1e3
    expected = net(x, t, {"caption": text})
    torch.testing.assert_close(net(x, t, {"caption": padded}), expected)
    torch.testing.assert_close(net(x, t, {"caption": other}), expected)


@pytest.mark.parametrize("length", [1, 6])
def test_absent_text_is_the_same_left_out_or_nan_of_any_length(length):
    net = perturbed(DiTConfig(**SMALL, conditions=TEXT)).double()
    x, t = a_batch(dtype=torch.float64)
    torch.testing.assert_close(net(x, t, {"caption": torch.full((4, length, 5), NAN)}), net(x, t))


def test_texts_of_a_batch_do_not_see_each_other():
    conditions = {**TEXT, "age": Scalar(high=99.0)}
    net = perturbed(DiTConfig(**SMALL, registers=1, conditions=conditions, num_classes=3)).double()
    x, t = a_batch(dtype=torch.float64)
    text = torch.randn(4, 3, 5, dtype=torch.float64)
    text[1, 1:], text[2] = NAN, NAN
    cond = {"caption": text, "age": torch.tensor([1.0, NAN, 50.0, 98.0]), "label": torch.arange(4)}
    rows = [
        net(x[i : i + 1], t[i : i + 1], {name: value[i : i + 1] for name, value in cond.items()})
        for i in range(4)
    ]
    torch.testing.assert_close(net(x, t, cond), torch.cat(rows))
    assert net.nulls.keys() == cond.keys()


def test_every_parameter_gets_a_gradient_with_texts_given_and_absent():
    net, (x, t) = perturbed(DiTConfig(**SMALL, registers=2, conditions=TEXT)), a_batch()
    text = torch.randn(4, 3, 5)
    text[0, 2], text[1] = NAN, NAN
    net(x, t, {"caption": text}).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_bf16_autocast_with_texts_is_close():
    net, (x, t) = perturbed(DiTConfig(**SMALL, registers=1, conditions=TEXT)).eval(), a_batch()
    cond = {"caption": torch.randn(4, 3, 5)}
    exact = net(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, t, cond)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.03 * exact.norm()


def test_dropout_is_active_in_training_mode_only():
    net, (x, t) = perturbed(DiTConfig(**SMALL, dropout=0.5)), a_batch()
    assert len(dropouts_of(net)) == 4
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


def test_gradient_checkpointing_changes_neither_loss_nor_gradients():
    options = {**SMALL, "dropout": 0.3}
    loss, grads = gradients(perturbed(DiTConfig(**options)))
    again, grads_again = gradients(perturbed(DiTConfig(**options, gradient_checkpointing=True)))
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(grads_again, grads)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradient_checkpointing_computes_blocks_twice(gradient_checkpointing):
    net = perturbed(DiTConfig(**SMALL, gradient_checkpointing=gradient_checkpointing))
    calls = []
    for block in net.blocks:
        assert isinstance(block, TransformerBlock)
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(net)
    assert len(calls) == (4 if gradient_checkpointing else 2)
    calls.clear()
    with torch.no_grad():
        net(*a_batch())
    assert len(calls) == 2


def test_forward_mode_derivative_in_time():
    net = perturbed(DiTConfig(**SMALL, registers=1, conditions=TEXT)).double()
    (x, t), h = a_batch(dtype=torch.float64), 1e-6
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = torch.func.jvp(lambda t: net(x, t), (t,), (torch.ones_like(t),))
    difference = (net(x, t + h) - net(x, t - h)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "M"}, "size is 'M'.*S, B, L, XL"),
        ({"patch": 3}, r"patch is 3.*\(1, 2, 4, 8, 16\)"),
        ({"patch_rank": 0}, "patch_rank is 0"),
        ({"width": 0}, "width is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"width": 100, "heads": 6}, "width 100 cannot have 6 heads.*divisible by 24"),
        ({"width": 40, "heads": 4}, "width 40 cannot have 4 heads.*divisible by 16"),
        ({"registers": -1}, "registers is -1"),
        ({"dropout": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(**options)


@pytest.mark.parametrize(
    ("patch", "shape", "message"),
    [
        (2, (2,), r"shape \(C, H, W\), got \(2,\)"),
        (8, (1, 28, 28), "8 x 8 do not tile images of 28 x 28; choose patch 1 or 2 or 4,.*32 x 32"),
        (4, (1, 32, 9), "4 x 4 do not tile images of 32 x 9; choose patch 1,.*32 x 12"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(patch, shape, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DiTConfig(**SMALL, patch=patch).build(shape)
