"""Image to image: noise partly over an image, and let the flow finish."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowmatch.editing.restoration import Noise, affine_path
from flowmatch.flow import Cond, Field
from flowmatch.paths import AffinePath
from flowmatch.sampling import sample
from flowmatch.solvers import Heun, Solver
from flowmatch.tensors import batch_time


@torch.no_grad()
def sdedit(
    field: Field,
    x: Tensor,
    strength: float,
    solver: Solver = Heun(steps=20),
    cond: Cond | Tensor | None = None,
    *,
    seeds: Sequence[int],
    stream: int = 0,
    path: AffinePath | None = None,
) -> Tensor:
    """Images like `x` that the flow finds plausible.

        xt = alpha(t) x + sigma(t) x0 at t = 1 - strength, then integrated to 1

    Args:
        field: the flow, or any field around it.
        x: images to start from (a sketch, another class, a sample of another model), [B, *D].
        strength: in [0, 1]; 0 gives `x` back, 1 a sample that has forgotten it.
        solver: the integrator of the stretch from t to 1; a stochastic one draws its noise by seed.
        cond: None, a mapping from names to tensors, or a bare label tensor [B].
        seeds: one a sample.
        stream: seeds of another stream give other noise.
        path: the path that the flow was trained on; None takes the field's own.
    Returns:
        [B, *D].
    Raises:
        ValueError: a strength outside [0, 1], another number of seeds than images, or a field that
            does not know its path.
    Source: Meng et al. 2022, "SDEdit: Guided Image Synthesis and Editing with Stochastic
    Differential Equations", algorithm 1, with the flow's ODE (or the SDE of a stochastic solver).
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    if len(seeds) != len(x):
        raise ValueError(f"got {len(seeds)} seeds for {len(x)} images; give one for each")
    path = affine_path(field, path)
    if strength == 0:
        return x.clone()
    t = 1 - strength
    xt = path.xt(Noise(tuple(seeds), stream).source(x), x, batch_time(t, x))
    return sample(field, xt, solver, cond, t0=t, path=path, seeds=seeds, stream=stream)
