import pytest
import torch
from torch import nn

from flowmatch.networks.rotary import axial_rotation, rotate
from flowmatch.networks.transformer import (
    FinalLayer,
    RotaryAttention,
    SwiGLU,
    TransformerBlock,
    swiglu_width,
)

WIDTH, HEADS, GRID = 24, 3, (2, 3)
TOKENS = 6


def some_tokens(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(2, TOKENS, WIDTH, dtype=dtype), torch.randn(2, WIDTH, dtype=dtype)


def rotation(like):
    return axial_rotation(GRID, WIDTH // HEADS, like=like)


def shaken(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


@pytest.mark.parametrize("width", [384, 768, 1024, 1152])
def test_swiglu_has_the_parameters_of_the_usual_mlp(width):
    hidden = swiglu_width(width)
    assert hidden % 8 == 0
    assert abs(hidden - 8 / 3 * width) <= 4
    with torch.device("meta"):
        parameters = sum(p.numel() for p in SwiGLU(width).parameters())
    assert parameters == 3 * width * hidden
    assert parameters == pytest.approx(2 * width * 4 * width, rel=2e-3)


def test_swiglu_width_is_exact_where_it_can_and_never_zero():
    assert [swiglu_width(width) for width in (384, 768, 1152)] == [1024, 2048, 3072]
    assert swiglu_width(1) == 8


def test_swiglu_is_the_papers():
    mlp, (x, _) = shaken(SwiGLU(WIDTH)), some_tokens()
    gate, up = mlp.gate_up.weight.chunk(2)
    hidden = (x @ gate.T) * torch.sigmoid(x @ gate.T) * (x @ up.T)
    torch.testing.assert_close(mlp(x), hidden @ mlp.out.weight.T)


def rms_norm(x, gain=1.0):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_the_papers_head_by_head(qk_norm):
    layer, (x, _) = shaken(RotaryAttention(WIDTH, heads=HEADS, qk_norm=qk_norm)), some_tokens()
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    if qk_norm:
        q = rms_norm(q.unflatten(-1, (HEADS, -1)), layer.q_norm.weight).flatten(2)
        k = rms_norm(k.unflatten(-1, (HEADS, -1)), layer.k_norm.weight).flatten(2)
    size, outs = WIDTH // HEADS, []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        a, b = rotate(q[..., part], rotation(x)), rotate(k[..., part], rotation(x))
        outs.append((a @ b.transpose(1, 2) / size**0.5).softmax(-1) @ v[..., part])
    torch.testing.assert_close(layer(x, rotation(x)), layer.proj_out(torch.cat(outs, dim=-1)))


def test_with_qk_norm_the_scale_of_queries_and_keys_has_no_effect():
    layer, (x, _) = shaken(RotaryAttention(WIDTH, heads=HEADS, qk_norm=True)), some_tokens()
    before = layer(x, rotation(x))
    for parameter in (layer.qkv.weight, layer.qkv.bias):
        parameter.data[: 2 * WIDTH] *= 100
    torch.testing.assert_close(layer(x, rotation(x)), before, rtol=1e-4, atol=1e-4)


def test_tokens_that_are_not_seen_have_no_effect_on_the_others():
    layer, (x, _) = shaken(RotaryAttention(WIDTH, heads=HEADS, qk_norm=True)), some_tokens()
    seen = torch.ones(2, TOKENS, dtype=torch.bool)
    seen[0, 2] = False
    other = x.clone()
    other[:, 2] += 1
    before, after = layer(x, rotation(x), seen), layer(other, rotation(x), seen)
    assert torch.equal(after[0, [0, 1, 3, 4, 5]], before[0, [0, 1, 3, 4, 5]])
    assert not torch.allclose(after[1, 0], before[1, 0])
    torch.testing.assert_close(layer(x, rotation(x), seen)[1], layer(x, rotation(x))[1])


def test_block_starts_as_the_identity_and_final_layer_at_zero():
    torch.manual_seed(0)
    block = TransformerBlock(WIDTH, heads=HEADS, qk_norm=True, dropout=0.0)
    x, embedding = some_tokens(torch.float32)
    assert torch.equal(block(x, embedding, rotation(x)), x)
    assert not FinalLayer(WIDTH, 5)(x, embedding).any()


def test_block_is_the_papers():
    block = shaken(TransformerBlock(WIDTH, heads=HEADS, qk_norm=True, dropout=0.0))
    x, embedding = some_tokens()
    steering = block.modulation[1](embedding * torch.sigmoid(embedding))[:, None]
    shift, scale, gate, shift_2, scale_2, gate_2 = steering.split(WIDTH, dim=-1)
    h = x + gate * block.attention(rms_norm(x) * (1 + scale) + shift, rotation(x))
    h = h + gate_2 * block.mlp(rms_norm(h) * (1 + scale_2) + shift_2)
    torch.testing.assert_close(block(x, embedding, rotation(x)), h)


def test_bf16_autocast_keeps_the_sequence_in_float32():
    block = shaken(TransformerBlock(WIDTH, heads=HEADS, qk_norm=True, dropout=0.0)).float()
    x, embedding = some_tokens(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x, embedding, rotation(x)).dtype == torch.float32
