"""Averages of a network's weights over the training: their profiles, and how they are kept.

Average and weights are of the same training, so an average is told by its *profile*: how much the
weights of each moment of the past count in it.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import BeforeValidator, Discriminator, Field, Tag
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flowmatch.component import Component
from flowmatch.flow import Flow
from flowmatch.training.sharding import divide, local

Module = TypeVar("Module", bound=nn.Module)

_RAMP = 0.05
"""Half-life over images so far of the "edm" warm-up.  Source: Karras et al. 2022, table 7."""

WIDEST_STD = 12**-0.5
"""The relative standard deviation of the plain mean of all weights, the widest of the profiles."""


@dataclass(frozen=True, kw_only=True)
class Profile(Component, ABC):
    """How much the weights of each moment count in an average."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the average is called in file names and by --weights, e.g. "std0.05"."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What protocols call the average, e.g. "EMA std 0.05"."""

    @abstractmethod
    def decay_at(self, update: int, *, batch: int, images: int) -> float:
        """The weight of the past in an update.

        Args:
            update: its number; the first is 1.
            batch: images between the last update and this one.
            images: images seen until this update.
        """


@dataclass(frozen=True, kw_only=True)
class Exponential(Profile):
    """The past counts less by a constant factor: `ema = decay ema + (1 - decay) w`.

    Args:
        decay: weight of the past at each step, in [0, 1); None without `halflife_images` is 0.9999.
        halflife_images: instead of `decay`: the past counts half after so many images, whatever the
            batch.
        warmup: what limits the decay early on, at update n = 1, 2, ...:
            "none"; "tensorflow-like": (1 + n) / (10 + n);
            "crowsonkb": 1 - (1 + n / inv_gamma) ** -power;
            "edm": a half-life of at most a twentieth of the images so far, whatever the batch;
            "auto": "edm" with `halflife_images`, else "crowsonkb".
        inv_gamma, power: of "crowsonkb", both > 0; power 3/4 suits shorter, 2/3 longer trainings.
    """

    kind: Literal["exponential"] = "exponential"
    decay: float | None = None
    halflife_images: float | None = None
    warmup: Literal["auto", "none", "tensorflow-like", "crowsonkb", "edm"] = "auto"
    inv_gamma: float = 1.0
    power: float = 0.75

    def __post_init__(self) -> None:
        if self.decay is not None and self.halflife_images is not None:
            raise ValueError("give decay or halflife_images, not both; null takes one back")
        if self.decay is None and self.halflife_images is None:
            object.__setattr__(self, "decay", 0.9999)
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"an EMA decay lies in [0, 1), got {self.decay}")
        if self.halflife_images is not None and self.halflife_images <= 0:
            raise ValueError(f"halflife_images must be positive, got {self.halflife_images}")
        if self.inv_gamma <= 0 or self.power <= 0:
            raise ValueError("inv_gamma and power of an EMA warm-up must be positive")

    @property
    def name(self) -> str:
        if self.decay is not None:
            return f"decay{_plain(self.decay)}"
        return f"halflife{_plain(self._halflife)}"

    @property
    def title(self) -> str:
        if self.decay is not None:
            return f"EMA decay {_plain(self.decay)}"
        return f"EMA half-life {self._halflife:,.12g} images"

    def decay_at(self, update: int, *, batch: int, images: int) -> float:
        decay = self.decay
        warmup = self.warmup
        if warmup == "auto":
            warmup = "crowsonkb" if decay is not None else "edm"
        if decay is None:
            decay = float(0.5 ** (batch / self._halflife))
        if warmup == "tensorflow-like":
            return min(decay, (1 + update) / (10 + update))
        if warmup == "crowsonkb":
            return min(decay, 1 - float((1 + update / self.inv_gamma) ** -self.power))
        if warmup == "edm":
            return min(decay, float(0.5 ** (batch / (_RAMP * images))))
        return decay

    @property
    def _halflife(self) -> float:
        assert self.halflife_images is not None  # as there is no decay
        return self.halflife_images


@dataclass(frozen=True, kw_only=True)
class Power(Profile):
    """The past counts by a power of its time, so that the average widens as the training goes on.

        ema(t) = (gamma + 1) / t^(gamma + 1) * integral_0^t tau^gamma w(tau) dtau

    Weights that stay the same from one update to the next are averaged exactly so by

        ema = decay ema + (1 - decay) w,   decay = (1 - batch / images)^(gamma + 1)

    The beginning is forgotten by itself: there is no warm-up, and the first decay is 0.

    Args:
        std: standard deviation of the profile relative to the training so far, in (0, 0.28867];
            0.05 suits many trainings, and the widest is the mean of all weights alike.
    Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
        section 3.1.
    """

    kind: Literal["power"] = "power"
    std: float

    def __post_init__(self) -> None:
        if not 0 < self.std <= WIDEST_STD:
            raise ValueError(
                "the relative std of a power profile lies in (0, 0.28867]; the widest is the mean"
                f" of all weights alike, got {self.std}"
            )

    @property
    def name(self) -> str:
        return f"std{_plain(self.std)}"

    @property
    def title(self) -> str:
        return f"EMA std {_plain(self.std)}"

    @property
    def gamma(self) -> float:
        """The exponent of the profile, at least 0."""
        return gamma_of(self.std)

    def decay_at(self, update: int, *, batch: int, images: int) -> float:
        return float((1 - batch / images) ** (self.gamma + 1))


@functools.cache
def gamma_of(std: float) -> float:
    """The exponent of the power profile with this relative standard deviation.

        (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2) = std

    Squared, it is a cubic with one root that is not negative, as `std` is at most 1/sqrt(12).
    """
    s = std**-2
    return max(float(np.roots([1, 7, 16 - s, 12 - s]).real.max()), 0.0)


def _with_kind(node: Any) -> Any:
    """An average without a kind is exponential, as all were once."""
    if not isinstance(node, dict) or "kind" in node:
        return node
    if "std" in node:
        raise ValueError("has a std but no kind; std is of kind: power")
    return {"kind": "exponential", **node}


def _how_many(node: Any) -> str:
    return "several" if isinstance(node, list | tuple) else "one"


ProfileConfig = Annotated[
    Exponential | Power, Field(discriminator="kind"), BeforeValidator(_with_kind)
]
EMAConfig = Annotated[
    Annotated[ProfileConfig, Tag("one")] | Annotated[tuple[ProfileConfig, ...], Tag("several")],
    Discriminator(_how_many),
]
"""One profile or a list of them, of which the first is the run's own."""


class EMA(Generic[Module]):
    """A copy of `module` whose weights follow the original's: `ema += (1 - decay)(w - ema)`.

    The copy is a module of its own, so sampling from it never touches the weights in training.

    Args:
        module: what is averaged.
        mesh: the processes that share each weight of the average; None: each has all.
    """

    def __init__(self, module: Module, mesh: DeviceMesh | None = None) -> None:
        self.module: Module = copy.deepcopy(module).eval().requires_grad_(False)
        if mesh is not None:
            divide(self.module, mesh)
        self._average: list[Tensor] = list(self.module.parameters())
        self.follow(module)

    def follow(self, module: Module) -> None:
        """Average this module from now on, or the same one that has been sharded since."""
        self._live: list[Tensor] = list(module.parameters())
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move every weight towards the original's; buffers are copied."""
        average, weights = ([local(p) for p in ps] for ps in (self._average, self._live))
        torch._foreach_lerp_(average, weights, 1 - decay)
        for mine, live in self._buffers:
            mine.copy_(live)


class Averages:
    """The averages of a flow by several profiles.

    Args:
        flow: whose weights are averaged.
        profiles: of different names; the first is the run's own.
        mesh: see `EMA`.
    """

    def __init__(
        self, flow: Flow, profiles: Sequence[Profile], mesh: DeviceMesh | None = None
    ) -> None:
        self._averages = {profile: EMA(flow, mesh) for profile in profiles}

    def follow(self, flow: Flow) -> None:
        """See `EMA`."""
        for ema in self._averages.values():
            ema.follow(flow)

    @property
    def own(self) -> Flow:
        """The average that the run samples and evaluates."""
        return next(iter(self._averages.values())).module

    @property
    def networks(self) -> dict[Profile, nn.Module]:
        """The averaged networks by their profiles, the run's own first."""
        return {profile: ema.module.network for profile, ema in self._averages.items()}

    def update(self, number: int, *, batch: int, images: int) -> None:
        """Move every average; arguments as of `Profile.decay_at`."""
        for profile, ema in self._averages.items():
            ema.update(profile.decay_at(number, batch=batch, images=images))


def _plain(value: float) -> str:
    """The shortest text that reads back as this number; whole ones without a decimal point."""
    return repr(float(value)).removesuffix(".0")
