import pytest
import torch
from torch import nn

from flowmatch.networks.conditions import Text
from flowmatch.networks.tokens import (
    PatchEmbedding,
    PrefixTokens,
    TextTokens,
    patchify,
    unpatchify,
)

NAN = float("nan")


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unpatchify_inverts_patchify_exactly(patch):
    x = torch.randn(2, 3, 8, 12)
    patches = patchify(x, patch)
    assert patches.shape == (2, 96 // patch**2, 3 * patch**2)
    assert torch.equal(unpatchify(patches, (8 // patch, 12 // patch), patch), x)


def test_patches_are_squares_of_the_image_row_by_row():
    x = torch.randn(2, 3, 4, 6)
    patches = patchify(x, 2)
    for row in range(2):
        for column in range(3):
            square = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[:, 3 * row + column], square.flatten(1))


def test_patch_embedding_is_a_convolution_with_stride():
    torch.manual_seed(0)
    embed = PatchEmbedding(12, 5).double()
    nn.init.normal_(embed[0].bias)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    conv = nn.functional.conv2d(x, embed[0].weight.view(5, 3, 2, 2), embed[0].bias, stride=2)
    torch.testing.assert_close(embed(patchify(x, 2)), conv.flatten(2).transpose(1, 2))


def test_patch_rank_bounds_the_rank():
    torch.manual_seed(0)
    tokens = PatchEmbedding(48, 32, rank=4)(torch.randn(100, 48))
    assert torch.linalg.matrix_rank(tokens) == 4


def a_text(tokens=3, dim=4):
    torch.manual_seed(0)
    return TextTokens(Text(dim=dim), 8), torch.randn(2, tokens, dim)


def test_text_is_one_learned_token_and_then_its_own():
    layer, value = a_text()
    tokens, seen = layer(value)
    assert tokens.shape == (2, 4, 8)
    assert seen.all()
    assert torch.equal(tokens[:, 0], layer.padding.expand(2, -1))


def test_padding_is_not_seen_whatever_else_its_row_says():
    layer, value = a_text()
    value[0, 2] = NAN
    value[1, 0, 1] = NAN
    tokens, seen = layer(value)
    assert seen.tolist() == [[True, True, True, False], [True, False, True, True]]
    assert tokens.isfinite().all()


@pytest.mark.parametrize("length", [0, 1, 5])
def test_of_an_absent_text_the_learned_token_alone_is_seen(length):
    layer, _ = a_text()
    _, seen = layer(torch.full((2, length, 4), NAN))
    assert seen.tolist() == [[True] + [False] * length] * 2


def test_prefix_is_registers_then_texts_then_patches():
    layer = PrefixTokens(2, {"a": Text(dim=4), "b": Text(dim=3)}, 8)
    patches = torch.randn(2, 5, 8)
    sequence, seen = layer(patches, {"a": torch.randn(2, 3, 4), "b": torch.full((2, 1, 3), NAN)})
    assert sequence.shape == (2, 2 + 4 + 2 + 5, 8)
    assert torch.equal(sequence[:, :2], layer.registers.expand(2, -1, -1))
    assert torch.equal(sequence[:, 8:], patches)
    assert (~seen).nonzero().tolist() == [[0, 7], [1, 7]]


def test_no_prefix_is_nothing():
    patches = torch.randn(2, 5, 8)
    sequence, seen = PrefixTokens(0, {}, 8)(patches, {})
    assert torch.equal(sequence, patches)
    assert seen is None
