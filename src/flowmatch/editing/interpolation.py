"""From one image to another through the flow's noise."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmatch.flow import Cond, Field, as_cond
from flowmatch.paths import AffinePath
from flowmatch.sampling import sample
from flowmatch.solvers import Heun, Solver


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation of the directions, linear interpolation of the lengths.

        direction = sin((1 - w) theta) / sin(theta) a/|a| + sin(w theta) / sin(theta) b/|b|

    A straight line between two noises passes nearer to the origin than any noise lies; the arc
    keeps their length.

    Args:
        a, b: [B, *D], none of them 0.
        weight: in [0, 1], one for all or one a sample [B]; 0 gives `a`.
    Returns:
        [B, *D]. Where `a` and `b` are parallel the line is taken; opposite ones have no one arc
        between them, and there the result is not finite.
    Source: Shoemake 1985, "Animating Rotation with Quaternion Curves", section 3.3.
    """
    u, v = a.flatten(1), b.flatten(1)
    w = torch.as_tensor(weight, dtype=u.dtype, device=u.device).expand(len(u))[:, None]
    lengths = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    u, v = u / lengths[0], v / lengths[1]
    # the angle from half the chord: exact for nearly parallel vectors, where acos is not
    theta = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    # sin(w theta) / sin(theta) with both over theta, which is w where theta is 0
    near, far = (torch.sinc(s * theta / torch.pi) * s for s in (1 - w, w))
    direction = (near * u + far * v) / torch.sinc(theta / torch.pi)
    arc: Tensor = direction * torch.lerp(lengths[0], lengths[1], w)
    return arc.view_as(a)


def interpolate(
    field: Field,
    a: Tensor,
    b: Tensor,
    n: int = 8,
    solver: Solver = Heun(steps=50),
    cond: Cond | Tensor | None = None,
    *,
    data_time: float = 0.99,
    path: AffinePath | None = None,
) -> Tensor:
    """`n` images from `a` to `b`: both to noise, along the arc between, and back.

    The first and the last are `a` and `b` up to the error of integrating there and back.

    Args:
        field: the flow, or any field around it.
        a, b: images, [B, *D].
        n: images of each row, the ends among them, >= 2.
        solver: the integrator of both ways.
        cond: None, a mapping from names to tensors, or a bare label tensor [B]; of both ends.
        data_time: where on the path the images are taken to lie, in (0, 1]. Just below 1 the
            velocity of a network still knows the noise, and is finite on every path.
        path: the path that the flow was trained on, for solvers that use it; None takes the
            field's own.
    Returns:
        [B, n, *D].
    Raises:
        ValueError: shapes that differ, n < 2, a time out of its range, or a solver that adds noise.
    Source: noise arcs as in Song et al. 2021, "Denoising Diffusion Implicit Models", section 5.3.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"the images have shapes {tuple(a.shape)} and {tuple(b.shape)}; they must be equal"
        )
    if n < 2:
        raise ValueError(f"n counts both ends, so it must be at least 2, got {n}")
    if not 0 < data_time <= 1:
        raise ValueError(f"data_time must be in (0, 1], got {data_time}")
    if solver.stochastic:
        raise ValueError(
            "interpolation must find its way back, so its solver may not add noise; use heun"
        )
    conditions = (as_cond(cond) or {}).items()
    both = {name: torch.cat([value, value]) for name, value in conditions} or None
    x0 = sample(field, torch.cat([a, b]), solver, both, t0=data_time, t1=0.0, path=path)
    noise_a, noise_b = x0.tensor_split(2)
    weights = torch.linspace(0, 1, n, dtype=torch.float64).repeat(len(a)).to(a)
    between = slerp(repeat(noise_a, n), repeat(noise_b, n), weights)
    each = {name: repeat(value, n) for name, value in conditions} or None
    x1 = sample(field, between, solver, each, t1=data_time, path=path)
    return x1.view(len(a), n, *a.shape[1:])


def repeat(x: Tensor, n: int) -> Tensor:
    """Each row n times in a row: [B, *D] -> [B n, *D]."""
    return x.repeat_interleave(n, 0)
