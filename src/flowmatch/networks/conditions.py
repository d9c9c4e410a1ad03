"""Conditions besides the class: scalars, vectors and texts, each with a null.

A network is told everything through one mapping `cond` from names to tensors. That a condition is
absent is said in the tensor itself, sample by sample: a label by the number of classes, the others
by NaN (`Vector(when_absent="zero")` by zeros). So a batch of given and absent conditions is one
tensor, as guidance and dropout want it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flowmatch.component import Component
from flowmatch.networks.embeddings import TimeEmbedding

ABSENT = math.nan
"""What the values of an absent scalar, vector or text are."""

LABEL = "label"
"""The name of the class in a `cond`."""

AUGMENT = "augment"
"""The name of what was done to a datum: no wish, so it is neither dropped nor guided towards."""


@dataclass(frozen=True, kw_only=True)
class Condition(Component, ABC):
    """One condition of a network: the shape of its values, its null, and its embedding."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int | None, ...]:
        """Shape of one sample's value; None where the length is free."""

    @property
    def absent(self) -> float:
        """What each number of an absent value is."""
        return ABSENT

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module `value [B, *shape] -> [B, width]`."""


@dataclass(frozen=True, kw_only=True)
class Scalar(Condition):
    """A number, e.g. an age or an angle: [B] float32.

    Args:
        low, high: the usual range, which the embedding resolves; values outside are no mistake.
    """

    low: float = 0.0
    high: float = 1.0
    kind: Literal["scalar"] = "scalar"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"a scalar's low must be below its high, got {self.low}, {self.high}")

    @property
    def shape(self) -> tuple[int | None, ...]:
        return ()

    def build(self, width: int) -> nn.Module:
        return ScalarEmbedding(self, width)


@dataclass(frozen=True, kw_only=True)
class Vector(Condition):
    """A vector of fixed length, e.g. the embedding of an image: [B, dim] float32.

    Args:
        dim: its length.
        when_absent: "learned": an absent vector is NaN and has an embedding of its own; "zero": it
            is zeros, and so is its embedding. (Augmentation wants the latter.)
    """

    dim: int
    when_absent: Literal["learned", "zero"] = "learned"
    kind: Literal["vector"] = "vector"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"a vector's dim must be at least 1, got {self.dim}")

    @property
    def shape(self) -> tuple[int | None, ...]:
        return (self.dim,)

    @property
    def absent(self) -> float:
        return 0.0 if self.when_absent == "zero" else ABSENT

    def build(self, width: int) -> nn.Module:
        if self.when_absent == "zero":
            return LinearEmbedding(self.dim, width, bias=False)
        return VectorEmbedding(self, width)


@dataclass(frozen=True, kw_only=True)
class Text(Condition):
    """The token embeddings of a text, from a frozen encoder: [B, tokens, dim] float32.

    Tokens that are NaN are padding; a text of nothing else is absent.

    Args:
        dim: length of a token's embedding.
    """

    dim: int
    kind: Literal["text"] = "text"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"a text's dim must be at least 1, got {self.dim}")

    @property
    def shape(self) -> tuple[int | None, ...]:
        return (None, self.dim)

    def build(self, width: int) -> nn.Module:
        return TextEmbedding(self, width)


ConditionConfig = Annotated[Scalar | Vector | Text, Field(discriminator="kind")]


class ScalarEmbedding(nn.Module):
    """Sines of the number's place between `low` and `high`, then Linear, SiLU, Linear."""

    def __init__(self, config: Scalar, width: int) -> None:
        super().__init__()
        self.config = config
        self.waves = TimeEmbedding(64, width)
        self.null = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, value: Tensor) -> Tensor:
        """[B] -> [B, width]."""
        absent = value.isnan()
        place = (value - self.config.low) / (self.config.high - self.config.low)
        out = self.waves(torch.where(absent, 0.0, place))
        return torch.where(absent[:, None], self.null.to(out.dtype), out)


class LinearEmbedding(nn.Linear):
    """A linear map of the vector, nothing else: zeros stay zeros, and NaN counts as zeros."""

    def forward(self, value: Tensor) -> Tensor:
        """[B, dim] -> [B, width]."""
        given = torch.where(value.isnan().any(1, keepdim=True), 0.0, value)
        return super().forward(given.to(self.weight.dtype))


class VectorEmbedding(nn.Linear):
    """A linear map of the vector; a learned vector where it is absent."""

    def __init__(self, config: Vector, width: int) -> None:
        super().__init__(config.dim, width)
        self.null = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, value: Tensor) -> Tensor:
        """[B, dim] -> [B, width]."""
        absent = value.isnan().any(1, keepdim=True)
        out = super().forward(torch.where(absent, 0.0, value).to(self.weight.dtype))
        return torch.where(absent, self.null.to(out.dtype), out)


class TextEmbedding(nn.Module):
    """The tokens normalised, and pooled by attention with one learned query.

        output = W sum_i softmax_i(q . norm(token_i)) norm(token_i)

    Source: the attention pooling of Lee et al. 2019, "Set Transformer", equation 11, with one seed.
    """

    def __init__(self, config: Text, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.query = nn.Parameter(torch.randn(config.dim) / config.dim)
        self.out = nn.Linear(config.dim, width)
        self.null = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, value: Tensor) -> Tensor:
        """[B, tokens, dim] -> [B, width]."""
        padding = value.isnan().any(2)
        absent = padding.all(1, keepdim=True)
        tokens = self.norm(torch.where(padding[..., None], 0.0, value).to(self.query.dtype))
        scores = (tokens @ self.query).masked_fill(padding & ~absent, -torch.inf)
        pooled = (scores.softmax(1)[..., None] * tokens).sum(1)
        out: Tensor = self.out(pooled.to(self.out.weight.dtype))
        return torch.where(absent, self.null.to(out.dtype), out)


class ConditionEmbedding(nn.ModuleDict):
    """The sum of the embeddings of several conditions.

    Args:
        conditions: by name.
        width: length of the result.
    """

    def __init__(self, conditions: Mapping[str, Condition], width: int) -> None:
        super().__init__({name: c.build(width) for name, c in conditions.items()})
        self.config = dict(conditions)

    def forward(self, cond: Mapping[str, Tensor] | None, x: Tensor) -> Tensor:
        """Embed what `cond` says of these conditions as [B, width]; what is missing is absent.

        Raises:
            ValueError: a value has another shape than its condition.
        """
        parts = [layer(self.value_of(name, cond, x)) for name, layer in self.items()]
        return torch.stack(parts).sum(0)

    def value_of(self, name: str, cond: Mapping[str, Tensor] | None, x: Tensor) -> Tensor:
        """What `cond` says of one condition, [B, *shape]; absent if it says nothing.

        Raises:
            ValueError: it has another shape than the condition.
        """
        condition = self.config[name]
        shape = (len(x), *condition.shape)
        if cond is None or name not in cond:
            full = [1 if n is None else n for n in shape]
            return torch.full(full, condition.absent, dtype=torch.float32, device=x.device)
        value = cond[name]
        if value.ndim != len(shape) or any(
            n not in (None, m) for n, m in zip(shape, value.shape, strict=True)
        ):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(
                f"condition {name!r} has shape {tuple(value.shape)}; this network takes [{wanted}]"
            )
        return value


def nulls_of(num_classes: int | None, conditions: Mapping[str, Condition]) -> dict[str, float]:
    """What says that a condition is absent, by name."""
    label: dict[str, float] = {} if num_classes is None else {LABEL: num_classes}
    return label | {name: condition.absent for name, condition in conditions.items()}


class Conditioned(nn.Module):
    """A network whose `config` says by what it is conditioned."""

    config: Any

    @property
    def num_classes(self) -> int | None:
        """Number of classes without the null class; None if the network takes no class."""
        classes: int | None = self.config.num_classes
        return classes

    @property
    def nulls(self) -> dict[str, float]:
        """What says that a condition is absent, by name."""
        return nulls_of(self.config.num_classes, self.config.conditions)


def check_conditions(num_classes: int | None, conditions: Mapping[str, Condition]) -> None:
    """Refuse numbers of classes below 1 and conditions named like the class.

    Raises:
        ValueError: says what is wrong.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(
            f"num_classes is {num_classes}; give the number of classes without the null class"
            " (at least 1), or None for an unconditional network"
        )
    if LABEL in conditions:
        raise ValueError("label is no entry of conditions; for classes set num_classes")
    taken = {*dir(nn.ModuleDict()), "config", "value_of"}
    if bad := [name for name in conditions if not name.isidentifier() or name in taken]:
        raise ValueError(f"a condition cannot be called {bad[0]!r}; take a name like my_{bad[0]}")
