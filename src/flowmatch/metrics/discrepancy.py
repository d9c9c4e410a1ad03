"""Discrepancies of two sets of points from means over their pairs: MMD and energy distance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowmatch.metrics.neighbours import squared_distance_tiles
from flowmatch.metrics.rows import as_row_pair, on_host

WIDTHS = 5
"""Bandwidths of the kernel: the median distance times 1/4, 1/2, 1, 2 and 4."""
MEDIAN_ROWS = 4000
"""Rows that the median distance is taken of, spread evenly over all."""


def mmd(x: Tensor, y: Tensor) -> float:
    """The squared maximum mean discrepancy with a mixture of Gaussian kernels.

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)
        k(x, y) = mean over f in {1/4, 1/2, 1, 2, 4} of exp( -|x - y|^2 / (2 (f s)^2) )

    with s the median distance between rows of `y` (of 4,000 of them where there are more), so
    swapping the two may change the number.
    Unbiased: its mean is 0 for equal laws, about which it has either sign.

    Args:
        x: samples, [N, *D] with N at least 2.
        y: data, [M, *D] with M at least 2.
    Returns:
        The estimate, a pure number at most 2.
    Raises:
        ValueError: rows of different shapes, fewer than two, NaN, or a `y` most of which is equal.
    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", equation 3; bandwidths: section 8.
    """
    x, y = _pair(x, y)
    widest = 2 ** (WIDTHS // 2) * _median_distance(y)

    def kernel(squared: Tensor) -> Tensor:
        k = torch.exp(-squared / (2 * widest**2))
        total = k.clone()
        for _ in range(WIDTHS - 1):
            k = k.square_().square_()  # half the bandwidth is the fourth power
            total += k
        return total / WIDTHS

    return _mean_within(x, kernel) + _mean_within(y, kernel) - 2 * _mean_between(x, y, kernel)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """The energy distance, which is zero for equal laws alone and has no parameters.

        2 E|x - y| - E|x - x'| - E|y - y'|

    Unbiased: its mean is 0 for equal laws, about which it has either sign. It is the square of a
    metric, although its units are those of x.

    Args:
        x: [N, *D] with N at least 2.
        y: [M, *D] with M at least 2.
    Returns:
        The estimate, in units of the coordinates.
    Raises:
        ValueError: rows of different shapes, fewer than two, or NaN.
    Source: Székely & Rizzo 2013, "Energy statistics".
    """
    x, y = _pair(x, y)
    between = _mean_between(x, y, torch.sqrt)
    return 2 * between - _mean_within(x, torch.sqrt) - _mean_within(y, torch.sqrt)


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = as_row_pair(x, y, ("x", "y"), at_least=2)
    return on_host(x), on_host(y)


def _mean_between(x: Tensor, y: Tensor, f: Callable[[Tensor], Tensor]) -> float:
    """Mean of f(|x - y|^2) over all pairs of a row of `x` and one of `y`."""
    total = sum(float(f(tile).sum()) for _, _, tile in squared_distance_tiles(x, y))
    return total / (len(x) * len(y))


def _mean_within(x: Tensor, f: Callable[[Tensor], Tensor]) -> float:
    """Mean of f(|x - x'|^2) over all pairs of different rows of `x`."""
    # What f gives a row with itself is known, so it is taken away again.
    own = float(f(torch.zeros(1, dtype=x.dtype))) * len(x)
    total = sum(float(f(tile).sum()) for _, _, tile in squared_distance_tiles(x, x))
    return (total - own) / (len(x) * (len(x) - 1))


def _median_distance(y: Tensor) -> float:
    """Median distance between different rows of `y`."""
    rows = torch.arange(min(len(y), MEDIAN_ROWS)) * len(y) // min(len(y), MEDIAN_ROWS)
    median = float(torch.pdist(y[rows]).median())
    if median == 0:
        raise ValueError(
            "the median distance between rows of y is 0, so the kernel has no bandwidth; pass data"
            " of which fewer rows are equal"
        )
    return median
