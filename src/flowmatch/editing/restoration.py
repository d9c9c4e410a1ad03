"""What a restoration is: an image that a flow finds plausible and a measurement allows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowmatch.component import Component
from flowmatch.editing.operators import LinearOperator
from flowmatch.flow import Cond, Field, as_cond
from flowmatch.paths import AffinePath
from flowmatch.randomness import keyed_generator
from flowmatch.sampling import noise, path_of, step_noise
from flowmatch.tensors import batch_time


@dataclass(frozen=True)
class Denoiser:
    """A flow under a fixed condition as what it knows of the data: `D(xt, t) = E[x1 | xt]`."""

    field: Field
    path: AffinePath
    cond: Cond | None

    def __call__(self, xt: Tensor, t: float) -> Tensor:
        """The data prediction at `xt` [B, *D] and 0 < t < 1: [B, *D]."""
        time = batch_time(t, xt)
        velocity = self.field(xt, time, self.cond)
        return self.path.convert(velocity, xt, time, source="velocity", to="x1")

    def only(self, i: int) -> Denoiser:
        """The same for sample i of the batch alone."""
        cond = self.cond and {name: value[i : i + 1] for name, value in self.cond.items()}
        return replace(self, cond=cond)


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers for some samples, each a function of its own seed."""

    seeds: tuple[int, ...]
    stream: int

    def source(self, like: Tensor) -> Tensor:
        """The x0 [B, *D] that `flowmatch.noise` draws for these seeds."""
        return noise(self.seeds, tuple(like.shape[1:]), stream=self.stream).to(like)

    def fresh(self, k: int, like: Tensor) -> Tensor:
        """The k-th new noise of a method, [B, *D]."""
        return step_noise(self.seeds, stream=self.stream)(k, like)


@dataclass(frozen=True, kw_only=True)
class Restoration(Component, ABC):
    """Base of the methods that find x1 from `y = A x1 + noise` with a flow as the prior."""

    def __call__(
        self,
        field: Field,
        y: Tensor,
        operator: LinearOperator,
        cond: Cond | Tensor | None = None,
        *,
        seeds: Sequence[int],
        stream: int = 0,
        path: AffinePath | None = None,
    ) -> Tensor:
        """The restored images.

        Args:
            field: the flow, or any field around it.
            y: measurements, [B, *M].
            operator: the A that they were made by.
            cond: None, a mapping from names to tensors, or a bare label tensor [B].
            seeds: one a sample: it is restored from this and its own `y`, whatever else is in the
                batch.
            stream: seeds of another stream give other noise.
            path: the path that the flow was trained on; None takes the field's own.
        Returns:
            x1, [B, *D], without a gradient.
        Raises:
            ValueError: an operator that is not linear or does not fit y, another number of seeds
                than samples, or a field that does not know its path.
        """
        if len(seeds) != len(y):
            raise ValueError(f"got {len(seeds)} seeds for {len(y)} measurements; give one for each")
        denoiser = Denoiser(field, affine_path(field, path), as_cond(cond))
        with torch.no_grad():
            check_operator(operator, y)
            return self.restore(denoiser, y, operator, Noise(tuple(seeds), stream))

    @abstractmethod
    def restore(
        self, denoise: Denoiser, y: Tensor, operator: LinearOperator, noise: Noise
    ) -> Tensor:
        """The method itself, called without gradients and with arguments that fit.  [B, *D]"""


def affine_path(field: Field, path: AffinePath | None) -> AffinePath:
    """The path given, or the one that the field itself has.

    Raises:
        ValueError: there is neither.
    """
    found = path if path is not None else path_of(field)
    if not isinstance(found, AffinePath):
        raise ValueError(
            f"a field of type {type(field).__name__} does not say which path it belongs to; pass"
            " path=, e.g. path=flow.path"
        )
    return found


def check_operator(operator: LinearOperator, y: Tensor) -> None:
    """Refuse an operator that is not linear, or whose measurements have another shape than y."""
    like = operator.adjoint(y)
    some = torch.randn(like.shape[1:], generator=keyed_generator("operator check")).to(like)
    some = some.expand_as(like)
    zero = operator(torch.zeros_like(some))
    if zero.shape != y.shape:
        raise ValueError(
            f"the operator gives measurements of shape {tuple(zero.shape[1:])}, but y has"
            f" {tuple(y.shape[1:])}; give y as the operator makes it"
        )
    if bool(zero.any()):
        raise ValueError(
            "the operator is not linear: it maps 0 to something else; subtract its offset from it"
            " and from y"
        )
    once, back = operator(some), operator(-2 * some)  # the sign finds abs, relu and clamp too
    if not torch.allclose(back, -2 * once, rtol=1e-2, atol=1e-2 * float(once.abs().max())):
        raise ValueError(
            "the operator is not linear: of -2 times an image it does not give -2 times as much"
        )


def midpoints(steps: int) -> list[float]:
    """The middles of `steps` equal parts of [0, 1]: near both ends, where conversions are singular,
    but never at one."""
    return [(i + 0.5) / steps for i in range(steps)]
