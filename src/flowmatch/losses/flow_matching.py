"""The flow-matching loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flowmatch.component import Component
from flowmatch.couplings import CouplingConfig, Independent
from flowmatch.flow import Cond, Flow, as_cond
from flowmatch.paths import Prediction
from flowmatch.tensors import mean_flat
from flowmatch.times import TimeConfig, Uniform


class Draws(NamedTuple):
    """The randomness of one training batch, as an argument rather than a hidden state."""

    noise: Tensor
    """Source samples before the coupling, [B, *D]."""
    time: Tensor
    """Uniform numbers in [0, 1) that the time density turns into t, [B] float32."""
    drop: Tensor
    """Uniform numbers in [0, 1); a label is dropped where it is below `label_dropout`, [B]."""

    @classmethod
    def like(cls, x1: Tensor, generator: torch.Generator | None = None) -> Draws:
        """Standard normal noise and uniform numbers for a batch shaped like `x1`."""
        noise = torch.empty_like(x1).normal_(generator=generator)
        uniforms = torch.rand(2, len(x1), generator=generator, device=x1.device)
        return cls(noise, uniforms[0], uniforms[1])


class SampleLosses(NamedTuple):
    """The loss of each sample of a batch, and the time that it was taken at."""

    loss: Tensor
    """[B], with gradients; its mean is the loss of the batch."""
    t: Tensor
    """[B]."""


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Component):
    """Conditional flow matching: mean squared error of the prediction at a random point of a path.

        L = E_{t, x0, x1} w(t) || prediction(xt, t) - target(x0, x1, t) ||^2 / dim

    The network's kind of prediction decides what is compared; `space` decides what the error is
    measured in, through the exact factor between the two. With the default, a network that predicts
    x1 is penalised for the velocity that it implies.

    Args:
        time: density that t is drawn from.
        coupling: which source sample meets which datum.
        space: "velocity", "x1", "x0", "score", or "prediction" (whatever the network predicts).
        max_weight: the factor's upper bound, since it may grow without limit towards an end:
            1/(1-t)^2 from x1 to velocity, cut by the default at t = 0.95.
        label_dropout: share of the labels replaced by the null class, each sample on its own, for
            classifier-free guidance; in [0, 1].
    Source: Lipman et al. 2023, equation 9; the change of space: Salimans & Ho 2022, appendix D, and
    Li & He 2025, "Back to Basics" (x1-prediction with a velocity loss, t cut at 0.95).
    """

    time: TimeConfig = Uniform()
    coupling: CouplingConfig = Independent()
    space: Prediction | Literal["prediction"] = "velocity"
    max_weight: float = 400.0
    label_dropout: float = 0.0
    kind: Literal["flow_matching"] = "flow_matching"

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is a share in [0, 1], got {self.label_dropout}")
        if self.max_weight <= 0:
            raise ValueError(f"max_weight must be positive, got {self.max_weight}")

    def __call__(
        self,
        flow: Flow,
        x1: Tensor,
        cond: Cond | Tensor | None = None,
        *,
        x0: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """The mean loss over a batch, a scalar.

        Args:
            flow: what is trained.
            x1: data, [B, *D].
            cond: conditions of the data, or a bare label tensor [B].
            x0: the source sample of each datum, [B, *D]; given, no coupling takes place.
            draws: the batch's random numbers; None draws them from torch's global generator.
        """
        return self.drawn(flow, x1, cond, x0=x0, draws=draws).loss.mean()

    def drawn(
        self,
        flow: Flow,
        x1: Tensor,
        cond: Cond | Tensor | None = None,
        *,
        x0: Tensor | None = None,
        draws: Draws | None = None,
    ) -> SampleLosses:
        """The loss of each sample at the time drawn for it; the arguments are those of a call."""
        draws = draws or Draws.like(x1)
        x0 = self.coupling(draws.noise, x1) if x0 is None else x0
        t = self.time.quantile(draws.time)
        cond = self._drop_labels(as_cond(cond), draws.drop, flow.num_classes)
        return SampleLosses(self.per_sample(flow, x0, x1, t, cond), t)

    def per_sample(
        self, flow: Flow, x0: Tensor, x1: Tensor, t: Tensor, cond: Cond | None = None
    ) -> Tensor:
        """The loss of each sample at a given time: [B]."""
        xt = flow.path.xt(x0, x1, t)
        prediction = flow.prediction(xt, t, cond)
        target = flow.path.target(x0, x1, t, flow.predict)
        return self.weight(flow, t) * mean_flat((prediction.to(x1.dtype) - target) ** 2)

    def weight(self, flow: Flow, t: Tensor) -> Tensor:
        """`w(t)`: turns a squared error of `flow.predict` into one of `space`.  [B] -> [B]"""
        if self.space in ("prediction", flow.predict):
            return torch.ones_like(t)
        scale = flow.path.error_scale(t, source=flow.predict, to=self.space)  # type: ignore[arg-type]
        return (scale**2).clamp(max=self.max_weight)

    def _drop_labels(self, cond: Cond | None, u: Tensor, null: int | None) -> Cond | None:
        if cond is None or self.label_dropout == 0 or "label" not in cond:
            return cond
        if null is None:
            raise ValueError(
                "label_dropout needs a class-conditional network; set network.num_classes"
            )
        dropped = torch.where(u < self.label_dropout, null, cond["label"])
        return {**cond, "label": dropped}
