"""Networks of repositories in which t=1 is noise, as networks of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from flowmatch.component import Component
from flowmatch.networks import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class NoiseAtOneConfig(Component):
    """A network that was trained with t=1 as noise to predict `noise - data`.

    Args:
        inner: the network itself, whose `time_scale` is the foreign repository's (999, 1000).
    """

    inner: NetworkConfig
    kind: Literal["noise_at_one"] = "noise_at_one"

    @property
    def num_classes(self) -> int | None:
        return self.inner.num_classes

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        """The wrapped network for data of `shape`."""
        return NoiseAtOne(self.inner.build(shape))


class NoiseAtOne(nn.Module):
    """`v(x, t) = -inner(x, 1 - t)`: time runs the other way, so the velocity changes its sign.

    Source: the convention of Lipman et al. 2023 as of rectified flow's image models (Esser et al.
    2024), where the network sees `s = 1 - t` and learns `x0 - x1`.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def num_classes(self) -> int | None:
        return getattr(self.inner, "num_classes", None)

    @property
    def nulls(self) -> Mapping[str, float]:
        return dict(getattr(self.inner, "nulls", {}))

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return -self.inner(x, 1 - t, cond)  # type: ignore[no-any-return]
