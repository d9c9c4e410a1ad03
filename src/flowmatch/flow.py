"""A flow: a network's output, read as a velocity."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from flowmatch.paths import AffinePath, Linear, Prediction
from flowmatch.tensors import batch_time

Cond = Mapping[str, Tensor]
"""Conditions by name, e.g. `{"label": int64 [B]}`."""

Field = Callable[[Tensor, Tensor, Cond | None], Tensor]
"""`(x [B, *D], t [B], cond) -> v [B, *D]`: what is sampled, guided, counted and wrapped."""


class Flow(nn.Module):
    """A network, the path it was trained on, and what it predicts: together, a velocity field.

    Args:
        network: `(x [B, *D], t [B], cond) -> [B, *D]`.
        path: the affine path between source and data.
        predict: what the network's output means: "velocity", "x1", "x0" or "score".
        shape: the shape of one sample, e.g. (3, 32, 32); None if nobody needs to know.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        path: AffinePath = Linear(),
        predict: Prediction = "velocity",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.predict: Prediction = predict
        self.shape = shape

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the network's label; None if it takes no label."""
        return getattr(self.network, "num_classes", None)

    def forward(self, x: Tensor, t: float | Tensor, cond: Cond | Tensor | None = None) -> Tensor:
        """The velocity at `x` [B, *D] and time `t` (a number or [B]), shaped like `x`.

        `cond` is None, a mapping from names to tensors, or a bare label tensor [B].
        """
        t = batch_time(t, x)
        prediction = self.prediction(x, t, cond)
        return self.path.convert(prediction, x, t, source=self.predict, to="velocity")

    def prediction(self, x: Tensor, t: Tensor, cond: Cond | Tensor | None = None) -> Tensor:
        """The network's own output at `x` [B, *D] and `t` [B], of the kind `self.predict`."""
        out: Tensor = self.network(x, t, as_cond(cond))
        return out


def as_cond(cond: Cond | Tensor | None) -> Cond | None:
    """The mapping that a network takes: a bare tensor is the label."""
    return {"label": cond} if isinstance(cond, Tensor) else cond
