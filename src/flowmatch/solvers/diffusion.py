"""Diffusion forms: how much noise a stochastic solver adds where on the path."""

from __future__ import annotations

import math
from typing import Literal, get_args

from flowmatch.solvers.on_path import Point

DiffusionForm = Literal["sigma", "constant", "sine", "memoryless"]
"""`g(t)^2` of `dx = (v + g^2/2 score) dt + g dW`: sigma(t); 1; sin(pi t)^2; or
2 sigma (sigma alpha'/alpha - sigma'), which forgets x0 on the way and is what DDPM reverses.

Source: Ma et al. 2024, "SiT", table 2 and appendix (sigma, constant, sine); Domingo-Enrich et al.
2024, "Adjoint Matching", equation 14 (memoryless)."""


def squared_diffusion(form: DiffusionForm, at: Point) -> float:
    """`g^2` at a point of the path; infinite where a memoryless process begins."""
    if form == "sigma":
        return at.sigma
    if form == "constant":
        return 1.0
    if form == "sine":
        return math.sin(math.pi * at.t) ** 2
    if at.alpha <= 0:
        return math.inf
    return 2 * at.sigma * (at.sigma * at.d_alpha / at.alpha - at.d_sigma)


def check_diffusion(form: str, scale: float) -> None:
    """Refuse a form that does not exist and a scale that is no share of noise."""
    if form not in get_args(DiffusionForm):
        known = ", ".join(get_args(DiffusionForm))
        raise ValueError(f"there is no diffusion form {form!r}; known: {known}")
    if scale < 0:
        raise ValueError(f"the scale of a diffusion is at least 0, got {scale}")
