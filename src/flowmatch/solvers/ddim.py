"""DDIM on any affine path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from flowmatch.solvers.on_path import points, require_path
from flowmatch.solvers.solver import GridSolver, TimeField


@dataclass(frozen=True, kw_only=True)
class DDIM(GridSolver):
    """The exponential Euler method: `x_s = alpha_s x1 + sigma_s x0` of the present predictions.

    1 field call a step, first order; on the linear path it is Euler's method.
    Source: Song et al. 2021, "Denoising Diffusion Implicit Models", equation 12 with no noise.
    """

    kind: Literal["ddim"] = "ddim"
    needs_path: ClassVar[bool] = True
    order: ClassVar[int] = 1
    stages: ClassVar[int] = 1

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        f = require_path(f, self.kind)
        for here, end in pairwise(points(f.path, self.times(t0, t1))):
            x = here.jump(x, f(x, here.t), end)
            yield end.t, x
