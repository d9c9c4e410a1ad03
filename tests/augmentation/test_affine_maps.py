"""The matrices of geometric augmentation against their definitions."""

import math

import torch

from flowmatch.augmentation.affine_maps import product, rotation, stretch


def random_pairs(n=50):
    return torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_stretch_is_the_exponential_of_its_symmetric_matrix():
    c, s = random_pairs()
    symmetric = torch.stack([c, s, s, -c], 1).reshape(-1, 2, 2)
    torch.testing.assert_close(stretch(c, s), torch.linalg.matrix_exp(math.log(2) * symmetric))


def test_a_stretch_lengthens_the_axis_at_half_its_angle():
    angle = torch.linspace(-3, 3, 7, dtype=torch.float64)
    axis = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    across = torch.stack([-torch.sin(angle), torch.cos(angle)], 1)
    matrix = stretch(1.5 * torch.cos(2 * angle), 1.5 * torch.sin(2 * angle))
    torch.testing.assert_close(torch.einsum("bij,bj->bi", matrix, axis), 2**1.5 * axis)
    torch.testing.assert_close(torch.einsum("bij,bj->bi", matrix, across), 2**-1.5 * across)


def test_no_stretch_is_the_identity_exactly():
    nothing = torch.zeros(1)
    assert torch.equal(stretch(nothing, nothing), torch.eye(2)[None])


def test_a_rotation_turns_right_to_down():
    quarter = rotation(torch.zeros(1), torch.ones(1))[0]
    assert torch.equal(quarter @ torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))


def test_a_product_is_the_matrix_product():
    a, b = torch.randn(2, 50, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(product(a, b), a @ b)
