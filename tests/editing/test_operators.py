"""Each operator's adjoint, pseudo-inverse and norm are those of its matrix."""

import pytest
import torch
from correlated_gaussian import matrix_of

from flowmatch.editing import Blur, Downsample, FromFunction, Grayscale, Inpaint, LinearOperator

SHAPE = (3, 6, 8)
KNOWN = torch.arange(48).view(6, 8) % 3 > 0
PLANES = torch.stack([KNOWN, ~KNOWN, KNOWN])
MATRIX = torch.randn(20, 144, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
MATRIX[10:] = MATRIX[:10]  # measured twice: A A^T is singular


def measure(x):
    return x.flatten(1) @ MATRIX.T


class Sums(LinearOperator):
    """A user's operator: the map, its adjoint, and nothing else."""

    def __call__(self, x):
        return x.sum(-1)

    def adjoint(self, y):
        return y[..., None].expand(*y.shape, 8)


OPERATORS = {
    "inpaint": Inpaint(KNOWN),
    "inpaint planes": Inpaint(PLANES),
    "downsample": Downsample(2),
    "gaussian": Blur.gaussian(0.7),
    "skew kernel": Blur(torch.tensor([[0.0, 2.0, 1.0], [0.5, -1.0, 0.3]])),
    "kernel that forgets": Blur(torch.full((2, 2), 0.25)),
    "kernel beyond the image": Blur.gaussian(2.0),
    "grayscale": Grayscale(),
    "function": FromFunction(measure, SHAPE),
    "two methods": Sums(),
}


@pytest.fixture(params=OPERATORS.values(), ids=OPERATORS.keys())
def operator(request):
    return request.param


@pytest.fixture
def x():
    return torch.randn(4, *SHAPE, dtype=torch.float64)


def test_the_adjoint(operator, x):
    y = operator(x)
    z = torch.randn_like(y)
    left, right = (y * z).flatten(1).sum(1), (x * operator.adjoint(z)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_the_pseudo_inverse(operator, x):
    y = operator(x)
    back = operator.pinv(y)
    torch.testing.assert_close(operator(back), y, rtol=0, atol=1e-7)
    a = matrix_of(operator, SHAPE)
    least = y.flatten(1) @ torch.linalg.pinv(a, rtol=1e-13).T
    # through a condition number of 1e6 the finest waves keep ten digits fewer
    torch.testing.assert_close(back.flatten(1), least, rtol=0, atol=1e-4)


def test_the_pseudo_inverse_with_a_ridge(operator, x):
    y = operator(x) + 0.1
    a = matrix_of(operator, SHAPE)
    gain = a.T @ torch.linalg.inv(a @ a.T + 0.3 * torch.eye(len(a)).double())
    found = operator.pinv(y, ridge=0.3).flatten(1)
    torch.testing.assert_close(found, y.flatten(1) @ gain.T, rtol=0, atol=1e-9)


def test_the_norm(operator, x):
    largest = torch.linalg.matrix_norm(matrix_of(operator, SHAPE), 2).item() ** 2
    assert operator.norm_squared(operator(x)) == pytest.approx(largest, rel=1e-2)
    assert operator.norm_squared(operator(x)) <= largest * (1 + 1e-9)


def test_linear_and_of_each_sample_alone(operator, x):
    torch.testing.assert_close(operator(2 * x[:1] - x[1:2]), 2 * operator(x)[:1] - operator(x)[1:2])
    y = operator(x)
    y[1] = 0
    alone = torch.cat([operator.pinv(y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(operator.pinv(y), alone, rtol=1e-9, atol=1e-9)


def test_pictures_have_the_size_of_the_image(operator, x):
    y = operator(x)
    assert operator.naive(y).shape == x.shape
    assert operator.shown(y).shape == x.shape


def test_single_precision_stays_single(operator, x):
    operator = OPERATORS["two methods"] if isinstance(operator, FromFunction) else operator
    y = operator(x.float())
    assert y.dtype == operator.pinv(y).dtype == operator.adjoint(y).dtype == torch.float32
    torch.testing.assert_close(operator(operator.pinv(y)), y, rtol=0, atol=1e-3)


def test_naive_fills():
    known = torch.tensor([[True, True], [True, False]])
    y = Inpaint(known)(torch.tensor([[[[1.0, 2.0], [6.0, 100.0]]]]))
    torch.testing.assert_close(Inpaint(known).naive(y)[0, 0], torch.tensor([[1.0, 2], [6, 3]]))
    assert Inpaint(known).measured(y) == 3
    assert Downsample(2).naive(torch.full((1, 1, 2, 2), 0.5)).eq(0.5).all()
    grey = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(Grayscale()(Grayscale().naive(grey)), grey)


def test_a_gaussian_blur_has_the_variance_it_says():
    point = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    point[..., 16, 16] = 1
    spread = Blur.gaussian(2.0)(point)[0, 0]
    offset = torch.arange(32) - 16.0
    assert spread.sum().item() == pytest.approx(1)
    assert (spread.sum(0) * offset).sum().item() == pytest.approx(0, abs=1e-12)
    assert (spread.sum(0) * offset**2).sum().item() == pytest.approx(4, rel=1e-2)


MISTAKES = {
    "float mask": (lambda: Inpaint(torch.ones(2, 2)), "bool tensor"),
    "nothing known": (lambda: Inpaint(torch.zeros(2, 2, dtype=torch.bool)), "nothing to start"),
    "other size": (lambda: Inpaint(KNOWN)(torch.zeros(1, 1, 8, 8)), "mask of their size"),
    "factor": (lambda: Downsample(0), "at least 1, got 0"),
    "odd size": (lambda: Downsample(4)(torch.zeros(1, 1, 6, 8)), "does not divide images of 6x8"),
    "sigma": (lambda: Blur.gaussian(0), "positive number of pixels, got 0"),
    "kernel": (lambda: Blur(torch.ones(3)), r"expected a kernel \[h, w\]"),
    "grey": (lambda: Grayscale()(torch.zeros(1, 1, 4, 4)), "expected colour images"),
    "iterations": (lambda: FromFunction(measure, SHAPE, iterations=0), "at least 1, got 0"),
}


@pytest.mark.parametrize(("act", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()
