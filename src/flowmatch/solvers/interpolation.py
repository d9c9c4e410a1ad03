"""Weights of multistep methods: integrals of the polynomials through what was seen before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np


def lagrange_integrals(
    nodes: Sequence[float],
    start: float,
    end: float,
    density: Callable[[Sequence[float]], Sequence[float]] | None = None,
    *,
    logarithmic: bool = False,
) -> list[float]:
    """`w_j = integral from start to end of l_j(u) density(u) du`, l_j the Lagrange polynomials.

    So `sum_j w_j g(nodes_j)` integrates the polynomial through the values of g exactly.

    Args:
        nodes: distinct points, one or more.
        start, end: the range, usually beyond the nodes.
        density: the integral's weight at given points; None is 1.
        logarithmic: integrate over log u, for a density that changes by orders of magnitude between
            `start` and `end`, which are then positive.
    Source: quadrature of Gauss and Legendre; without a density it is exact.
    """
    at, weights = _gauss_legendre(len(nodes) if density is None else 16)
    if logarithmic:
        start, end = math.log(start), math.log(end)
    middle, half = (start + end) / 2, (end - start) / 2
    u = [middle + half * a for a in at]
    values = [half * w for w in weights]
    if logarithmic:
        u = [math.exp(a) for a in u]
        values = [value * a for value, a in zip(values, u, strict=True)]  # du = u d(log u)
    if density is not None:
        values = [value * d for value, d in zip(values, density(u), strict=True)]
    out = []
    for j, node in enumerate(nodes):
        basis = values
        for i, other in enumerate(nodes):
            if i != j:
                basis = [b * (a - other) / (node - other) for a, b in zip(u, basis, strict=True)]
        out.append(sum(basis))
    return out


@cache
def _gauss_legendre(count: int) -> tuple[list[float], list[float]]:
    """Points and weights on [-1, 1], exact to degree `2 count - 1`."""
    at, weights = np.polynomial.legendre.leggauss(count)
    return at.tolist(), weights.tolist()
