import pytest
import torch
from torch import nn

from flowmatch.networks.attention import AttentionBlock

CHANNELS, HEADS = 24, 3


def a_block(qkv_order="new"):
    torch.manual_seed(0)
    block = AttentionBlock(CHANNELS, heads=HEADS, qkv_order=qkv_order).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def naive_attention(block, x):
    """softmax(q k^T / sqrt(ch)) v, head by head, with `qkv_order` read off the paper's picture."""
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    qkv = block.qkv(tokens)
    width = CHANNELS // HEADS
    heads = []
    for head in range(HEADS):
        if block.qkv_order == "new":
            starts = [part * CHANNELS + head * width for part in range(3)]
        else:
            starts = [(head * 3 + part) * width for part in range(3)]
        q, k, v = (qkv[..., start : start + width] for start in starts)
        heads.append(torch.softmax(q @ k.transpose(1, 2) / width**0.5, dim=-1) @ v)
    out = block.proj_out(torch.cat(heads, dim=-1))
    return x + out.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("qkv_order", ["new", "legacy"])
def test_equals_naive_softmax_attention(qkv_order):
    block = a_block(qkv_order)
    x = torch.randn(2, CHANNELS, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), naive_attention(block, x))


def test_orders_are_a_permutation_of_the_weights():
    new, legacy = a_block("new"), a_block("legacy")
    rows = torch.arange(3 * CHANNELS).view(3, HEADS, -1).transpose(0, 1).flatten()
    legacy.load_state_dict(
        new.state_dict()
        | {"qkv.weight": new.qkv.weight[rows].detach(), "qkv.bias": new.qkv.bias[rows].detach()}
    )
    x = torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(legacy(x), new(x))


def test_starts_as_the_identity():
    x = torch.randn(2, CHANNELS, 4, 4)
    assert torch.equal(AttentionBlock(CHANNELS, heads=HEADS)(x), x)


def test_channels_last_is_not_copied():
    block, seen = a_block(), {}
    block.norm.register_forward_hook(lambda _module, _args, out: seen.update(normed=out))
    block.qkv.register_forward_pre_hook(lambda _module, args: seen.update(tokens=args[0]))
    x = torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last)
    out = block(x)
    assert seen["tokens"].is_contiguous()
    assert seen["tokens"].data_ptr() == seen["normed"].data_ptr()
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="24 channels cannot have 5 heads"):
        AttentionBlock(24, heads=5)
