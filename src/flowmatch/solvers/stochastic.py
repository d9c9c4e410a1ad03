"""Stochastic solvers: what they have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from flowmatch.solvers.diffusion import DiffusionForm, check_diffusion, squared_diffusion
from flowmatch.solvers.on_path import OnPath, Point, points, require_path
from flowmatch.solvers.solver import GridSolver, TimeField


@dataclass(frozen=True, kw_only=True)
class Stochastic(GridSolver, ABC):
    """A solver that adds fresh noise on its way and has the ODE's marginals at every time.

    For a standard normal source the score is `-E[x0 | xt] / sigma`, so for any g(t)

        dx = (v + g^2/2 score) dt + g dW

    has the marginals of `dx = v dt`. It only runs forward, and its last step into t=1 is one of the
    ODE, since noise added there would stay.
    Source: Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3 and
    appendix D.1; on flows: Ma et al. 2024, "SiT", equation 9.
    """

    needs_path: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True

    @abstractmethod
    def noisy_step(self, f: OnPath, x: Tensor, here: Point, end: Point, k: int) -> Tensor:
        """Step number `k`, from `here` to `end`, which is not t=1."""

    def trajectory(
        self, f: TimeField, x: Tensor, *, t0: float = 0.0, t1: float = 1.0
    ) -> Iterator[tuple[float, Tensor]]:
        f = require_path(f, self.kind)  # type: ignore[attr-defined]
        if t1 < t0:
            raise ValueError(
                f"{self.kind} adds noise, so it cannot run backward from t={t0:g} to t={t1:g}; use"  # type: ignore[attr-defined]
                " an ODE solver such as heun"
            )
        for k, (here, end) in enumerate(pairwise(points(f.path, self.times(t0, t1)))):
            if end.sigma <= 0:
                x = self._last_step(f, x, here, end)
            else:
                x = self.noisy_step(f, x, here, end, k)
            yield end.t, x

    def _last_step(self, f: OnPath, x: Tensor, here: Point, end: Point) -> Tensor:
        """As many field calls as any step, by the ODE: equal first-order steps."""
        stops = [here.t + (end.t - here.t) * i / self.stages for i in range(self.stages)]
        for a, b in pairwise([*points(f.path, stops), end]):
            x = a.jump(x, f(x, a.t), b)
        return x


@dataclass(frozen=True, kw_only=True)
class Diffusing(Stochastic, ABC):
    """A stochastic solver of the SDE with a chosen diffusion.

    Args:
        diffusion: the form of g(t)^2.
        scale: factor on g^2, >= 0; 0 is the ODE.
    """

    diffusion: DiffusionForm = "sigma"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_diffusion(self.diffusion, self.scale)

    def noise_rate(self, at: Point, end: Point, h: float) -> float:
        """`g^2` at a point of a step of size `h` that leads to `end`.

        Any g keeps the marginals, so it is chosen small enough for the step: with more than
        `g^2 h = 2 sigma^2` at its end, a step would leave more noise than belongs there, and take
        away more of x0 than there is. Where g is infinite the process starts as an ODE.
        """
        rate = self.scale * squared_diffusion(self.diffusion, at) if self.scale else 0.0
        return min(rate, 2 * end.sigma**2 / h) if math.isfinite(rate) else 0.0

    def drift(self, f: OnPath, x: Tensor, at: Point, rate: float) -> Tensor:
        """`v + g^2/2 score`."""
        v = f(x, at.t)
        if rate == 0 or (at.stands_still and at.alpha > 0):
            return v
        x0 = at.x0(x, v) if at.alpha > 0 else x / at.sigma
        return v.sub(x0, alpha=rate / (2 * at.sigma))
