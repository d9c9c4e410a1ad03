"""The flow-matching loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowmatch.component import Component
from flowmatch.couplings import CouplingConfig, Independent
from flowmatch.flow import Cond, Flow, as_cond
from flowmatch.losses.distance import DistanceConfig, Squared
from flowmatch.losses.draws import Draws
from flowmatch.losses.weighting import (
    Constant,
    LearnedUncertainty,
    Uncertainty,
    WeightingConfig,
)
from flowmatch.networks.conditions import AUGMENT
from flowmatch.paths import Predicted
from flowmatch.tensors import expand_like
from flowmatch.times import LearnedDensity, TimeConfig, Uniform, adaptive_part

Space = Literal["velocity", "x1", "x0", "score", "prediction"]
"""What an error is measured in; "prediction" is whatever the network predicts."""

_INSIDE = 1e-4
"""How far from the ends losses are taken: there, targets and weights may have no bound."""

_MOST_SCALED = 1e6


class SampleLosses(NamedTuple):
    """The losses of a batch, sample by sample; all [B]."""

    objective: Tensor
    """What is minimised, in the mean over the batch; with gradients."""
    loss: Tensor
    """The loss itself, without what is learned about it; no gradients."""
    t: Tensor
    """The times that they were taken at."""
    weight: Tensor
    """How much each loss counts in a mean under the time density: 1, unless it is adaptive."""


class Learned(nn.Module):
    """What an objective learns besides the network: an uncertainty, a density of times.

    Args:
        uncertainty: see `Uncertainty`; None without.
        density: see `Adaptive`; None without.
    """

    def __init__(
        self, uncertainty: LearnedUncertainty | None, density: LearnedDensity | None
    ) -> None:
        super().__init__()
        self.uncertainty = uncertainty
        self.density = density


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Component):
    """Conditional flow matching: the error of a prediction at a random point of a path.

        L = E_{t, x0, x1} w(t) distance(s(t) (prediction(xt, t) - target(x0, x1, t)))

    The network's kind of prediction decides what is compared; `space` decides what the error is
    measured in, through the exact factor s(t) between the two. With the default, a network that
    predicts x1 is penalised for the velocity that it implies.

    Args:
        time: density that t is drawn from.
        coupling: which source sample meets which datum.
        space: "velocity", "x1", "x0", "score", or "prediction" (whatever the network predicts);
            None is what the weighting is meant for, or else "velocity".
        weighting: how much each t counts.
        distance: how large an error is.
        max_weight: upper bound of `s(t)^2 w(t)`, which may grow without limit towards an end:
            1/(1-t)^2 from x1 to velocity, cut by the default at t = 0.95.
        label_dropout: share of the samples whose conditions are replaced by their nulls, for
            classifier-free guidance; in [0, 1].
    Source: Lipman et al. 2023, equation 9; the change of space: Salimans & Ho 2022, appendix D, and
    Li & He 2025, "Back to Basics" (x1-prediction with a velocity loss, t cut at 0.95).
    """

    time: TimeConfig = Uniform()
    coupling: CouplingConfig = Independent()
    space: Space | None = None
    weighting: WeightingConfig = Constant()
    distance: DistanceConfig = Squared()
    max_weight: float = 400.0
    label_dropout: float = 0.0
    kind: Literal["flow_matching"] = "flow_matching"

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is a share in [0, 1], got {self.label_dropout}")
        if self.max_weight <= 0:
            raise ValueError(f"max_weight must be positive, got {self.max_weight}")
        own = self.weighting.space
        if own is not None and self.space not in (None, own):
            raise ValueError(
                f"{self.weighting.kind} weighs errors of {own}, but space is {self.space}; leave"
                " space out"
            )

    def build(self) -> Learned | None:
        """What is learned besides the network, from nothing; None if nothing is."""
        uncertain = isinstance(self.weighting, Uncertainty)
        adaptive = adaptive_part(self.time)
        if not uncertain and adaptive is None:
            return None
        return Learned(
            self.weighting.build() if isinstance(self.weighting, Uncertainty) else None,
            None if adaptive is None else adaptive.build(),
        )

    def __call__(
        self,
        flow: Flow,
        x1: Tensor,
        cond: Cond | Tensor | None = None,
        *,
        x0: Tensor | None = None,
        draws: Draws | None = None,
        learned: Learned | None = None,
    ) -> Tensor:
        """The mean objective over a batch, a scalar.

        Args:
            flow: what is trained.
            x1: data, [B, *D].
            cond: conditions of the data, or a bare label tensor [B].
            x0: the source sample of each datum, [B, *D]; given, no coupling takes place.
            draws: the batch's random numbers; None draws them from torch's global generator.
            learned: what `build` gave, if it gave anything. Its parameters are trained with the
                network's, and its `density.update()` is called once a step.
        Raises:
            ValueError: the loss learns something and `learned` is None.
        """
        losses = self.drawn(flow, x1, cond, x0=x0, draws=draws, learned=learned)
        return losses.objective.mean()

    def drawn(
        self,
        flow: Flow,
        x1: Tensor,
        cond: Cond | Tensor | None = None,
        *,
        x0: Tensor | None = None,
        draws: Draws | None = None,
        learned: Learned | None = None,
    ) -> SampleLosses:
        """The losses of each sample at the time drawn for it; the arguments are those of a call."""
        draws = draws or Draws.like(x1)
        learned = self._complete(learned)
        x0 = self.coupling(draws.noise, x1) if x0 is None else x0
        u, weight = draws.even if self.time.spread else draws.time, torch.ones_like(draws.time)
        if learned.density is not None:
            u, weight = learned.density.bend(u)
        t = self.time.quantile(u)
        if self.time.by_ratio:
            t = flow.path.time_of_ratio((1 - t) / t)
        loss = self.per_sample(flow, x0, x1, t, self._drop(flow, as_cond(cond), draws.drop))
        objective = loss
        if learned.uncertainty is not None:
            log_mean = learned.uncertainty(t)
            objective = torch.exp(-log_mean) * loss + log_mean
        if learned.density is not None:
            learned.density.add(u, loss)
        return SampleLosses(weight * objective, loss.detach(), t, weight)

    def per_sample(
        self, flow: Flow, x0: Tensor, x1: Tensor, t: Tensor, cond: Cond | None = None
    ) -> Tensor:
        """The loss of each sample at a given time, at least 1e-4 from the ends: [B]."""
        t = t.clamp(_INSIDE, 1 - _INSIDE)
        xt = flow.path.xt(x0, x1, t)
        prediction = flow.prediction(xt, t, cond)
        error = prediction.to(x1.dtype) - flow.path.target(x0, x1, t, flow.predict)
        if isinstance(self.distance, Squared):
            return self.weight(flow, t) * self.distance(error)
        scale = self._scale(flow, t).clamp(max=_MOST_SCALED).to(error.dtype)
        count = self.weight(flow, t) / scale**2  # w(t), within the bound
        return count * self.distance(expand_like(scale, error) * error)

    def weight(self, flow: Flow, t: Tensor) -> Tensor:
        """`s(t)^2 w(t)`: what a squared error of `flow.predict` counts.  [B] -> [B]

        What `Uncertainty` learns comes on top.
        """
        wide = t if t.device.type == "mps" else t.double()  # powers of 1/t overflow float32
        wide = wide.clamp(_INSIDE, 1 - _INSIDE)
        found = self._scale(flow, wide) ** 2 * self.weighting(flow.path, wide)
        return found.clamp(max=self.max_weight).to(t.dtype)

    def _scale(self, flow: Flow, t: Tensor) -> Tensor:
        """`s(t)`: an error of `flow.predict` as one of `space`."""
        space = self.space or self.weighting.space or "velocity"
        to: Predicted = flow.predict if space == "prediction" else space
        if to == flow.predict:
            return torch.ones_like(t)
        return flow.path.error_scale(t, source=flow.predict, to=to)

    def _complete(self, learned: Learned | None) -> Learned:
        """What is learned, or an empty one.

        Raises:
            ValueError: there is something to learn, and nowhere to keep it.
        """
        if learned is not None:
            return learned
        if isinstance(self.weighting, Uncertainty) or adaptive_part(self.time) is not None:
            raise ValueError(
                "this loss learns something besides the network; pass learned=loss.build() and"
                " train its parameters too"
            )
        return Learned(None, None)

    def _drop(self, flow: Flow, cond: Cond | None, u: Tensor) -> Cond | None:
        """Conditions with those of some samples replaced by their nulls."""
        if cond is None or self.label_dropout == 0:
            return cond
        given = {name: value for name, value in cond.items() if name != AUGMENT}
        if not given:
            return cond
        if not flow.nulls:
            raise ValueError(
                "label_dropout needs a conditional network; set network.num_classes or"
                " network.conditions"
            )
        null, drop = flow.null(given), u < self.label_dropout
        kept = {k: torch.where(expand_like(drop, v), null[k], v) for k, v in given.items()}
        return {**cond, **kept}
