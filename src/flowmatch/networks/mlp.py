"""A residual MLP: the network for 2-D toys and other vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from flowmatch.component import Component
from flowmatch.networks.conditions import (
    Condition,
    ConditionConfig,
    ConditionEmbedding,
    check_conditions,
    nulls_of,
)
from flowmatch.networks.embeddings import ClassEmbedding, read_labels, sinusoidal_embedding


@dataclass(frozen=True, kw_only=True)
class MLPConfig(Component):
    """What an `MLP` is built from.

    Args:
        width: units of a hidden layer.
        depth: number of residual layers.
        time_features: length of the sinusoidal embedding of time, and of the class embedding.
        time_scale: what time is multiplied by inside its embedding. The usual 1000 suits images;
            a toy learns its field as well from 10, and the field is then smooth in time, which
            solvers of high order and derivatives in time reward.
        num_classes: number of classes without the null class; None for a network without classes.
        conditions: other conditions by name, whose embeddings are summed.
    Raises:
        ValueError: a size is not positive.
    """

    width: int = 256
    depth: int = 3
    time_features: int = 64
    time_scale: float = 10.0
    num_classes: int | None = None
    conditions: Mapping[str, ConditionConfig] = field(default_factory=dict)
    kind: Literal["mlp"] = "mlp"

    def __post_init__(self) -> None:
        for name in ("width", "depth", "time_features"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        check_conditions(self.num_classes, self.conditions)

    def build(self, shape: tuple[int, ...]) -> MLP:
        """The network for data of this shape, which it flattens."""
        return MLP(
            math.prod(shape),
            width=self.width,
            depth=self.depth,
            time_features=self.time_features,
            time_scale=self.time_scale,
            num_classes=self.num_classes,
            conditions=self.conditions,
        )


class MLP(nn.Module):
    """A residual MLP over x, the sines of time and the class, side by side.

        h_0 = W [x, time(t), class],   h_{k+1} = h_k + W_k silu(h_k),   output = W' silu(h_depth)

    The last layer keeps its ordinary initialisation. A zero one is for deep stacks, where it lets
    every block start as the identity; three layers train as well without, and so their gradients
    are alive from the first step.

    Args:
        dim: number of values in a sample.
        width, depth, time_features, time_scale, num_classes, conditions: see `MLPConfig`.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = MLPConfig.width,
        depth: int = MLPConfig.depth,
        time_features: int = MLPConfig.time_features,
        time_scale: float = MLPConfig.time_scale,
        num_classes: int | None = MLPConfig.num_classes,
        conditions: Mapping[str, Condition] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conditions = dict(conditions or {})
        self.nulls = nulls_of(num_classes, self.conditions)
        self.time_features = time_features
        self.time_scale = time_scale
        self.label_emb: ClassEmbedding | None = None
        inputs = dim + time_features
        if num_classes is not None:
            self.label_emb = ClassEmbedding(num_classes, time_features)
            inputs += time_features
        self.cond_emb: ConditionEmbedding | None = None
        if self.conditions:
            self.cond_emb = ConditionEmbedding(self.conditions, time_features)
            inputs += time_features
        self.inp = nn.Linear(inputs, width)
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: samples [B, *D].
            t: times [B] in [0, 1], float32 or wider.
            cond: None, or `{"label": int64 [B]}` in [0, num_classes] and `conditions`; see
                `read_labels` and `ConditionEmbedding`.
        Returns:
            [B, *D] in the dtype of `x`.
        Raises:
            ValueError: `cond` has a name that the network does not know.
        """
        labels = read_labels(cond, x, num_classes=self.num_classes, others=self.conditions)
        waves = sinusoidal_embedding(t, self.time_features, scale=self.time_scale)
        inputs = [x.flatten(1), waves.to(x.dtype)]
        if self.label_emb is not None:
            inputs.append(self.label_emb(labels))
        if self.cond_emb is not None:
            inputs.append(self.cond_emb(cond, x).to(x.dtype))
        h = self.inp(torch.cat(inputs, dim=1))
        for layer in self.hidden:
            h = h + layer(h)
        out: Tensor = self.out(h)
        return out.view_as(x).to(x.dtype)
