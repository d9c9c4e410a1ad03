"""Affine paths: `xt = alpha(t) x1 + sigma(t) x0`, and every conversion between predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from flowmatch.component import Component
from flowmatch.paths.preconditioned import Preconditioned
from flowmatch.tensors import expand_like

Prediction = Literal["velocity", "x1", "x0", "score"]
"""What may be predicted about `xt`; each determines the others through one linear solve."""

Predicted = Prediction | Preconditioned
"""What a network may predict: one of them, or EDM's combination of x1 and x0."""

_BISECTIONS = 60


class Coefficients(NamedTuple):
    """`alpha, sigma` and their time derivatives, each shaped like the `t` they were taken at."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


@dataclass(frozen=True)
class AffinePath(Component, ABC):
    """An affine conditional path between a source sample x0 (t=0) and a data sample x1 (t=1).

        xt = alpha(t) x1 + sigma(t) x0,   v = dx/dt = alpha'(t) x1 + sigma'(t) x0

    A subclass gives `alpha` and `sigma` as functions of a [B] tensor; their derivatives come from
    forward-mode autograd unless it gives `d_alpha` and `d_sigma` in closed form too.

    Source: Lipman et al. 2024, "Flow Matching Guide and Code", section 4.7 (affine flows).
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data, 0 at t=0 and 1 at t=1.  [B] -> [B]"""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the source, 1 at t=0 and 0 at t=1.  [B] -> [B]"""

    def d_alpha(self, t: Tensor) -> Tensor:
        """Time derivative of `alpha`.  [B] -> [B]"""
        return torch.func.jvp(self.alpha, (t,), (torch.ones_like(t),))[1]  # type: ignore[no-any-return]

    def d_sigma(self, t: Tensor) -> Tensor:
        """Time derivative of `sigma`.  [B] -> [B]"""
        return torch.func.jvp(self.sigma, (t,), (torch.ones_like(t),))[1]  # type: ignore[no-any-return]

    def coefficients(self, t: Tensor) -> Coefficients:
        """`alpha, sigma, alpha', sigma'` at `t`, each of its shape."""
        return Coefficients(self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t))

    def ratio(self, t: Tensor) -> Tensor:
        """Noise over data, `sigma/alpha`, at `t`: falls from infinity to 0.  [B] -> [B]"""
        return self.sigma(t) / self.alpha(t)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The t at which `sigma/alpha` is `ratio`, the inverse of `ratio`.

        [B] in [0, inf] -> [B] in [0, 1], to the precision of `ratio`'s dtype. A ratio that the path
        does not reach has the t of its nearest.
        """
        wanted = ratio.double() if ratio.device.type != "mps" else ratio
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            noisier = self.sigma(middle) > wanted * self.alpha(middle)
            low, high = torch.where(noisier, middle, low), torch.where(noisier, high, middle)
        return ((low + high) / 2).to(ratio.dtype)

    def xt(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """The point at time `t` [B] between `x0` [B, *D] and `x1` [B, *D]."""
        alpha, sigma = expand_like(self.alpha(t), x1), expand_like(self.sigma(t), x0)
        return (alpha * x1 + sigma * x0).to(x1.dtype)

    def target(self, x0: Tensor, x1: Tensor, t: Tensor, kind: Predicted = "velocity") -> Tensor:
        """What a perfect predictor of `kind` would say if it knew `x0` and `x1`.  [B, *D]"""
        if kind == "x1":
            return x1
        if kind == "x0":
            return x0
        c1, c0 = (expand_like(c, x1) for c in self._weights(t, kind))
        return (c1 * x1 + c0 * x0).to(x1.dtype)

    def convert(
        self, prediction: Tensor, xt: Tensor, t: Tensor, *, source: Predicted, to: Predicted
    ) -> Tensor:
        """Turn a prediction of one kind into another.

        A prediction is `p = c1 x1 + c0 x0` with known `c1, c0`. Together with
        `xt = alpha x1 + sigma x0` it fixes x0 and x1, and hence any other `q = d1 x1 + d0 x0`:

            q = A xt + B p,   A = (d1 c0 - d0 c1)/det,   B = (d0 alpha - d1 sigma)/det,
            det = alpha c0 - sigma c1

        Args:
            prediction: what the network said, [B, *D].
            xt: where it said it, [B, *D].
            t: when, [B], in [0, 1].
            source: the kind of `prediction`.
            to: the kind wanted.
        Returns:
            The prediction of kind `to`, [B, *D]. Where the solve is singular (x1 from a velocity at
            a time when nothing moves, a velocity from x1 at t=1 or from x0 at t=0, a score at
            sigma=0) it is not finite; `Flow` keeps away from these ends.
        Source: Lipman et al. 2024, section 4.8.1 and table 1 (there as separate formulas).
        """
        if source == to:
            return prediction
        a, b = self._solve(t, source, to)
        return (expand_like(a, xt) * xt + expand_like(b, xt) * prediction).to(prediction.dtype)

    def error_scale(self, t: Tensor, *, source: Predicted, to: Predicted) -> Tensor:
        """Factor by which an error of kind `source` grows when it is expressed as kind `to`.

        `convert` is affine in the prediction with slope `B(t)`, so
        `|error in q|^2 = B(t)^2 |error in p|^2`: the weight that makes a loss on p one on q.
        Returns `|B(t)|`, [B].
        """
        if source == to:
            return torch.ones_like(t)
        return self._solve(t, source, to)[1].abs()

    def _weights(self, t: Tensor, kind: Predicted) -> tuple[Tensor, Tensor]:
        """`(c1, c0)` such that the prediction is `c1 x1 + c0 x0`."""
        if isinstance(kind, Preconditioned):
            return kind.weights(self.alpha(t), self.sigma(t))
        if kind == "velocity":
            return self.d_alpha(t), self.d_sigma(t)
        if kind == "x1":
            return torch.ones_like(t), torch.zeros_like(t)
        if kind == "x0":
            return torch.zeros_like(t), torch.ones_like(t)
        if kind == "score":  # of N(alpha x1, sigma^2): -x0 / sigma, a standard normal source
            return torch.zeros_like(t), -1 / self.sigma(t)
        raise ValueError(f"prediction kind {kind!r} is none of {', '.join(get_args(Prediction))}")

    def _solve(self, t: Tensor, source: Predicted, to: Predicted) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha(t), self.sigma(t)
        (c1, c0), (d1, d0) = self._weights(t, source), self._weights(t, to)
        det = alpha * c0 - sigma * c1
        return (d1 * c0 - d0 * c1) / det, (d0 * alpha - d1 * sigma) / det
