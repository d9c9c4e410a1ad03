"""Weights of multistep methods: integrals of the polynomials through what was seen before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def lagrange_integrals(
    nodes: Sequence[float],
    start: float,
    end: float,
    density: Callable[[Sequence[float]], Sequence[float]] | None = None,
) -> list[float]:
    """`w_j = integral from start to end of l_j(u) density(u) du`, l_j the Lagrange polynomials.

    So `sum_j w_j g(nodes_j)` integrates the polynomial through the values of g exactly.

    Args:
        nodes: distinct points, one or more.
        start, end: the range, usually beyond the nodes.
        density: the integral's weight at given points; None is 1.
    Source: quadrature of Gauss and Legendre with 16 points, exact to degree 31.
    """
    at, weights = np.polynomial.legendre.leggauss(16)
    u = (start + end) / 2 + (end - start) / 2 * at
    weights = weights * (end - start) / 2
    if density is not None:
        weights = weights * np.asarray(density(u.tolist()))
    out = []
    for j, node in enumerate(nodes):
        others = [other for i, other in enumerate(nodes) if i != j]
        basis = np.prod([(u - other) / (node - other) for other in others], axis=0)
        out.append(float((weights * basis).sum()))
    return out
