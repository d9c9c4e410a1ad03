"""Restoration by optimising the noise that the flow starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flowmatch.editing.operators import LinearOperator
from flowmatch.editing.restoration import Denoiser, Noise, Restoration
from flowmatch.flow import Cond, Field
from flowmatch.sampling import bind
from flowmatch.solvers import Midpoint, SolverConfig
from flowmatch.tensors import sum_flat

_HISTORY = 50
"""Steps that the curvature is learnt from: many, since x0 has few steep directions and many flat
ones; 50 need half the iterations of 10 towards the end."""


@dataclass(frozen=True, kw_only=True)
class DFlow(Restoration):
    """Find the x0 whose flow agrees with the measurement, by differentiating through the solver.

        min over x0 of max(|A Phi(x0) - y|^2 - M s^2, 0),   x1 = Phi(x0), by L-BFGS

    The start `sqrt(blend) Phi^-1(naive) + sqrt(1 - blend) n` decides which of the solutions is
    found: nothing else keeps x0 likely. For a flow that is affine in x0 the solution is the one
    nearest to the start, hence with blend 0 and an exact measurement a draw from the posterior. The
    search ends once the residual is no larger than the noise of M measured numbers; where its last
    step goes far below that, x1 follows the noise after all.

    Each sample is optimised on its own. Only the states of the solver are kept; the backward pass
    computes each network evaluation again, so an iteration costs about two evaluations and one
    backward pass for each field call of the solver.

    Args:
        iterations: of L-BFGS, >= 1; all together try at most 1.25 points each. Images need
            some hundred to agree with the measurement, however plausible they look before.
        solver: a deterministic solver of few steps.
        sigma_y: level of the measurement's noise, >= 0, in units of the image.
        blend: share of the variance of the start that comes from the naive estimate, in [0, 1].
        data_time: where the inversion of the naive estimate starts, in (0, 1]; 1 fails on paths
            whose velocity is infinite there (vp).
    Raises:
        ValueError: a value out of its range, or a solver that adds noise.
    Source: Ben-Hamu et al. 2024, "D-Flow: Differentiating through Flows for Controlled Generation",
    algorithm 1, section 4 (initialisation) and theorem 4.3; checkpoints: Chen et al. 2016.
    """

    iterations: int = 100
    solver: SolverConfig = Midpoint(steps=3)
    sigma_y: float = 0.0
    blend: float = 0.1
    data_time: float = 0.99
    kind: Literal["dflow"] = "dflow"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend is a share in [0, 1], got {self.blend}")
        if not 0 <= self.sigma_y < float("inf"):
            raise ValueError(f"sigma_y must be at least 0, got {self.sigma_y}")
        if not 0 < self.data_time <= 1:
            raise ValueError(f"data_time must be in (0, 1], got {self.data_time}")
        if self.solver.stochastic:
            raise ValueError(
                f"dflow needs x1 as a function of x0, but {self.solver.kind} adds noise on the way;"
                " use heun or midpoint"
            )

    def restore(
        self, denoise: Denoiser, y: Tensor, operator: LinearOperator, noise: Noise
    ) -> Tensor:
        start = noise.source(operator.naive(y))
        rows = [
            self._search(denoise.only(i), start[i : i + 1], y[i : i + 1], operator)
            for i in range(len(y))
        ]
        return torch.cat(rows) if rows else start

    def _search(self, denoise: Denoiser, x0: Tensor, y: Tensor, operator: LinearOperator) -> Tensor:
        """The x1 [1, *D] of one measurement `y` [1, *M], from the noise `x0` [1, *D]."""
        f = bind(denoise.field, denoise.cond, path=denoise.path)
        kept = bind(Recomputed(denoise.field), denoise.cond, path=denoise.path)
        if self.blend > 0:
            inverse = self.solver.integrate(f, operator.naive(y), t0=self.data_time, t1=0.0)
            x0 = self.blend**0.5 * inverse + (1 - self.blend) ** 0.5 * x0
        x0 = x0.clone().requires_grad_()
        tolerated = operator.measured(y) * self.sigma_y**2
        search = torch.optim.LBFGS(
            [x0],
            max_iter=self.iterations,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
            tolerance_change=1e-12,
        )

        def closure() -> Tensor:
            x1 = self.solver.integrate(kept, x0)
            loss = (sum_flat((operator(x1) - y) ** 2).sum() - tolerated).clamp(min=0)
            # not loss.backward(), which would leave gradients in the network's parameters
            (x0.grad,) = torch.autograd.grad(loss, x0)
            return loss

        with torch.enable_grad():
            search.step(closure)  # type: ignore[no-untyped-call]
        return self.solver.integrate(f, x0.detach())


@dataclass(frozen=True)
class Recomputed:
    """A field that keeps only its arguments for the backward pass, and computes the rest again."""

    field: Field

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        v: Tensor = checkpoint(self.field, x, t, cond, use_reentrant=False)
        return v
