"""The log-density of a flow, by the instantaneous change of variables."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowmatch.flow import Cond, Field
from flowmatch.likelihood.divergence import Divergence, FixedDivergence, Hutchinson
from flowmatch.likelihood.plain_ode import require_plain_ode
from flowmatch.likelihood.prior import Prior, standard_normal
from flowmatch.sampling import bind, check_times, checked_cond
from flowmatch.solvers import Dopri5, Solver, Stalled, TimeField

_ADAPTIVE = Dopri5()
_ONE_PROBE = Hutchinson()


class LogProb(NamedTuple):
    """A log-density, how far the probes leave it uncertain, and where the sample came from."""

    nats: Tensor
    """log p(x1), the mean over the probes, [B]."""
    error: Tensor
    """Standard error of `nats` from the probes, [B]: 0 where the divergence is exact, NaN for a
    single probe. The solver's error is not in it."""
    x0: Tensor
    """The source sample that flows into x1, [B, *D]."""


def log_prob(
    field: Field,
    x1: Tensor,
    solver: Solver = _ADAPTIVE,
    cond: Cond | Tensor | None = None,
    *,
    prior: Prior = standard_normal,
    divergence: Divergence = _ONE_PROBE,
    seeds: Iterable[int] | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
) -> Tensor:
    """The log-density of the flow at `x1`, in nats.

        log p(x1) = log p0(x0) - integral over t of div v(xt, t),   dx/dt = v, x(t1) = x1

    Position and log-density are integrated backward together, as one state [B, *D values + P], so
    any solver of ordinary differential equations serves, and an adaptive one watches both. It is
    differentiable in whatever asks for gradients, x1 or the field's parameters (maximum-likelihood
    training); call it under `torch.no_grad()` where none are wanted and memory matters. That is a
    second derivative of the network, which attention has under `sdpa_kernel(SDPBackend.MATH)`
    alone: it is used here, and a network that recomputes its blocks in the backward pass (gradient
    checkpointing) needs it around `backward()` too.

    Args:
        field: any callable `(x [B, *D], t [B], cond) -> v [B, *D]` that treats each sample on its
            own, e.g. a `Flow` in evaluation mode.
        x1: where the density is asked for, [B, *D]; images with `dequantise` before.
        solver: of an ordinary differential equation that knows the field alone.
        cond: None, a mapping from names to tensors, or a bare label tensor [B]: then this is
            log p(x1 | cond).
        prior: log-density of the source at `t0`, `x0 [B, *D] -> [B]`.
        divergence: `Exact()`, or `Hutchinson(probes=..., law=..., seed=...)`, which is unbiased.
        seeds: one number a sample, which its probes follow from; None numbers the batch from 0. Of
            a data set that is done in batches, pass the indices.
        t0: time of the source.
        t1: time of the data; below 1 this is the density of the flow that stops there. A network
            that predicts the velocity is smooth up to 1, the default. The velocity of one that
            predicts x1 is a difference over 1 - t, and that of a `VP` path infinite at 1: stop
            these a little before, e.g. at 1 - 1e-3.
    Returns:
        Nats, [B], in the dtype of `x1`, float32 or wider.
    Raises:
        ValueError: the solver is none of plain ordinary differential equations, the velocity at
            `t1` is not finite, or the arguments do not fit together.
    Source: Chen et al. 2018, "Neural Ordinary Differential Equations", theorem 1; for flow
    matching: Lipman et al. 2023, appendix C; the probes: Grathwohl et al. 2019 (FFJORD).
    """
    return estimate_log_prob(
        field,
        x1,
        solver,
        cond,
        prior=prior,
        divergence=divergence,
        seeds=seeds,
        t0=t0,
        t1=t1,
    ).nats


def estimate_log_prob(
    field: Field,
    x1: Tensor,
    solver: Solver = _ADAPTIVE,
    cond: Cond | Tensor | None = None,
    *,
    prior: Prior = standard_normal,
    divergence: Divergence = _ONE_PROBE,
    seeds: Iterable[int] | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
) -> LogProb:
    """`log_prob` with its error bar and the latent; takes the same arguments.

    All probes share one trajectory of x, so P of them cost one evaluation of the field and P
    backward passes where one costs one of each.
    """
    require_plain_ode(solver)
    check_times(t0, t1, forward=True)
    numbers = list(range(len(x1)) if seeds is None else seeds)
    _check(x1, numbers)
    x1 = x1.to(torch.promote_types(x1.dtype, torch.float32))
    f = bind(field, checked_cond(cond, x1))
    keep_graph = torch.is_grad_enabled() and (x1.requires_grad or f(x1, t1).requires_grad)
    estimates = divergence.fix(x1, numbers)
    augmented = _Augmented(f, estimates, tuple(x1.shape[1:]), keep_graph)
    columns = divergence.columns
    state = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), columns)], dim=1)
    try:
        state = solver.integrate(augmented, state, t0=t1, t1=t0)
    except Stalled:
        _require_finite(f(x1, t1), t1)
        raise
    x0, gained = augmented.position(state), state[:, -columns:]
    if not bool(state.isfinite().all()):
        _require_finite(f(x1, t1), t1)
    return LogProb(prior(x0) + gained.mean(1), divergence.error(gained.detach()), x0)


@dataclass(frozen=True)
class _Augmented:
    """The right side for `[x, log-density gained]`: `[v, div v]`.

    Backward from t1 the second part becomes minus the integral of div v from t0 to t1.
    """

    f: TimeField
    divergence: FixedDivergence
    shape: tuple[int, ...]
    keep_graph: bool

    def __call__(self, state: Tensor, t: float | Tensor) -> Tensor:
        # the fused kernels of attention have a first derivative only
        twice = sdpa_kernel(SDPBackend.MATH) if self.keep_graph else contextlib.nullcontext()
        with torch.enable_grad(), twice:
            x = self.position(state)
            if not (self.keep_graph and x.requires_grad):
                x = x.detach().requires_grad_()
            v = self.f(x, t)
            rates = self.divergence(v, x, self.keep_graph)
        out = torch.cat([v.flatten(1), rates], dim=1)
        return out if self.keep_graph else out.detach()

    def position(self, state: Tensor) -> Tensor:
        """The x [B, *D] of a state [B, *D values + P]."""
        return state[:, : math.prod(self.shape)].reshape(-1, *self.shape)


def _require_finite(velocity: Tensor, t1: float) -> None:
    """Asked only once something went wrong, since it is one evaluation more."""
    if not bool(velocity.isfinite().all()):
        raise ValueError(
            f"the velocity at t1={t1:g} is not finite; where x1 is, a path that ends steeply, as vp"
            " does, must be left a little before: pass t1=0.999"
        )


def _check(x1: Tensor, seeds: list[int]) -> None:
    if not x1.is_floating_point() or x1.ndim < 2:
        raise ValueError(
            f"a density is asked for at floating-point samples [B, *D], got {x1.dtype} of shape"
            f" {tuple(x1.shape)}; turn uint8 images into floats in [-1, 1] and dequantise them"
        )
    if len(seeds) != len(x1):
        raise ValueError(f"{len(seeds)} seeds for a batch of {len(x1)}; give one a sample")
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "the divergence is a derivative, which inference mode forbids; use torch.no_grad()"
        )
