"""A flow: a network's output, read as a velocity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from flowmatch.paths import AffinePath, HeldEnds, Linear, Preconditioned, Predicted
from flowmatch.tensors import batch_time, expand_like

Cond = Mapping[str, Tensor]
"""Conditions by name, e.g. `{"label": int64 [B]}`."""

Field = Callable[[Tensor, Tensor, Cond | None], Tensor]
"""`(x [B, *D], t [B], cond) -> v [B, *D]`: what is sampled, guided, counted and wrapped."""

_INSIDE = {0.0: 99.0, 1.0: 1 / 99}
"""Noise over data up to which a velocity is taken that is not determined at the end itself.

That is t=0.01 and t=0.99 on the linear path. On the way from there to the data exp(-1) of 0.01 of
noise is left, half a step of a pixel.
"""


class Decoder(Protocol):
    """Makes images of latents, in the precision of autocast."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""

    @property
    def weights(self) -> str:
        """Hash of the autoencoder."""

    def __call__(self, x: Tensor) -> Tensor:
        """The images [B, C, H, W] in [-1, 1], float32, of latents [B, *D] as a flow makes them."""


class Flow(nn.Module):
    """A network, the path it was trained on, and what it predicts: together, a velocity field.

    Args:
        network: `(x [B, *D], t [B], cond) -> [B, *D]`.
        path: the affine path between source and data.
        predict: what the network's output means: "velocity", "x1", "x0", "score", or
            `Preconditioned`, with which the network's input is scaled too.
        shape: the shape of one sample, e.g. (3, 32, 32); None if nobody needs to know.
        decoder: what makes images of samples that are latents; None if samples are what they are.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        path: AffinePath = Linear(),
        predict: Predicted = "velocity",
        shape: tuple[int, ...] | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.predict: Predicted = predict
        self.shape = shape
        self.decoder = decoder
        self._held = _held(path, predict)
        self._too_large = math.inf  # values of a stacked batch that did not fit into memory

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the network's label; None if it takes no label."""
        return getattr(self.network, "num_classes", None)

    @property
    def nulls(self) -> Mapping[str, float]:
        """What says that a condition is absent, by the names of the network's conditions."""
        known: Mapping[str, float] | None = getattr(self.network, "nulls", None)
        if known is not None:
            return known
        return {} if self.num_classes is None else {"label": self.num_classes}

    def known(self, cond: Cond) -> Cond | None:
        """What of some conditions the network takes; None if that is nothing."""
        return {name: value for name, value in cond.items() if name in self.nulls} or None

    @property
    def decoded_shape(self) -> tuple[int, ...] | None:
        """The shape of one sample as it is shown and measured: of latents, that of the image."""
        return self.shape if self.decoder is None else self.decoder.shape

    def decode(self, x1: Tensor) -> Tensor:
        """Samples [B, *D] as they are shown and measured: of latents, images in [-1, 1].

        Images of latents carry no gradient.
        """
        return x1 if self.decoder is None else self.decoder(x1)

    def forward(self, x: Tensor, t: float | Tensor, cond: Cond | Tensor | None = None) -> Tensor:
        """The velocity at `x` [B, *D] and time `t` (a number or [B]), shaped like `x`.

        `cond` is None, a mapping from names to tensors, or a bare label tensor [B]. Near an end of
        time at which the prediction leaves the velocity open (x0 at t=0, x1 at t=1, the score at
        both; where a path is infinitely fast, every one), the point is taken to be where data are a
        hundredth of the mixture, or noise is (t=0.01 and 0.99 on the linear path): so the velocity
        has a bound, and adaptive solvers and likelihoods an end. See `HeldEnds`.
        """
        t = batch_time(t, x)
        prediction = self.prediction(x, self._held.hold(t) if self._held else t, cond)
        path = self._held or self.path
        return path.convert(prediction, x, t, source=self.predict, to="velocity")

    @property
    def open_at_data(self) -> bool:
        """Whether its prediction leaves the velocity open at t=1, as x1 does."""
        return self._held is not None and self._held.stop < 1

    def prediction(self, x: Tensor, t: Tensor, cond: Cond | Tensor | None = None) -> Tensor:
        """The network's own output at `x` [B, *D] and `t` [B], of the kind `self.predict`."""
        if isinstance(self.predict, Preconditioned):
            scale = self.predict.input_scale(self.path.alpha(t), self.path.sigma(t))
            x = (expand_like(scale, x) * x).to(x.dtype)
        out: Tensor = self.network(x, t, as_cond(cond))
        return out

    def null(self, cond: Cond) -> Cond:
        """The same mapping with each condition replaced by its null: a label by `num_classes`, most
        others by NaN.

        Raises:
            ValueError: a condition has no null that is known here, or the network takes no label.
        """
        nulls = self.nulls
        if unknown := [name for name in cond if name not in nulls]:
            raise ValueError(
                f"cond has {unknown}, for which this flow knows no null"
                f" (known: {', '.join(nulls) or 'none'}); leave it out, or pass None as the null"
            )
        return {name: torch.full_like(value, nulls[name]) for name, value in cond.items()}

    def under(
        self, x: Tensor, t: float | Tensor, conds: Sequence[Cond | Tensor | None]
    ) -> list[Tensor]:
        """The velocities at the same points under several conditions, in one network call.

        The batch is stacked `len(conds)` times. Where that does not fit into memory, the conditions
        are evaluated one by one, and so is from then on every batch that is not smaller.

        Args:
            x: points [B, *D].
            t: their time, a number or [B].
            conds: conditions as a call takes them; None is the null condition.
        Returns:
            As many velocities [B, *D], equal to separate calls up to rounding.
        """
        t, n, size = batch_time(t, x), len(conds), len(conds) * x.numel()
        together = self._completed([as_cond(cond) for cond in conds])
        if n > 1 and together and _stackable(together) and size < self._too_large:
            cond = {name: torch.cat([c[name] for c in together]) for name in together[0]}
            try:
                return list(self(torch.cat([x] * n), t.repeat(n), cond or None).tensor_split(n))
            except torch.OutOfMemoryError:
                self._too_large = size
            torch.accelerator.memory.empty_cache()  # after the except: its traceback holds tensors
        return [self(x, t, cond) for cond in conds]

    def _completed(self, conds: list[Cond | None]) -> list[Cond] | None:
        """Conditions that all have the same names; None if a null that is missing is not known."""
        named = {name: value for cond in conds for name, value in (cond or {}).items()}
        if all(cond is not None and cond.keys() == named.keys() for cond in conds):
            return [cond for cond in conds if cond is not None]
        if not named.keys() <= self.nulls.keys():
            return None
        null = self.null(named)
        return [{**null, **(cond or {})} for cond in conds]


def _stackable(conds: Sequence[Cond]) -> bool:
    """Whether the values of each name have one shape; texts may be of other lengths."""
    return all(len({cond[name].shape for cond in conds}) == 1 for name in conds[0])


def _held(path: AffinePath, predict: Predicted) -> HeldEnds | None:
    """The path, held at the ends of time at which a prediction determines no velocity, if any.

    The x0 of pure noise says nothing about x1, nor the x1 of clean data about x0. Nearer to an end,
    the errors of a network grow by one over the distance to it.
    """
    ends = torch.tensor(list(_INSIDE), dtype=torch.float64)
    one = torch.ones(len(ends), 1, dtype=torch.float64)
    velocity = path.convert(one, one, ends, source=predict, to="velocity")
    inside = path.time_of_ratio(torch.tensor(list(_INSIDE.values()), dtype=torch.float64))
    start, stop = torch.where(velocity.flatten().isfinite(), ends, inside).tolist()
    return None if (start, stop) == (0.0, 1.0) else HeldEnds(path, start, stop)


def flow_inside(field: object) -> Flow | None:
    """The flow that fields around fields have at their centre; None if there is none."""
    while field is not None and not isinstance(field, Flow):
        field = getattr(field, "field", None)
    return field


def as_cond(cond: Cond | Tensor | None) -> Cond | None:
    """The mapping that a network takes: a bare tensor is the label."""
    return {"label": cond} if isinstance(cond, Tensor) else cond
