"""Guidance as a config or a command names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from flowmatch.component import Component
from flowmatch.flow import Field, Flow
from flowmatch.guidance.autoguidance import AutoGuided, check_weak
from flowmatch.guidance.cfg_zero import CFGZero, check_zero_until
from flowmatch.guidance.classifier_free import Guided
from flowmatch.guidance.counting import CountNFE
from flowmatch.guidance.projected import APG, check_projection
from flowmatch.guidance.scales import (
    ALWAYS,
    CosineScale,
    Interval,
    LinearScale,
    Scale,
    check_interval,
    check_scale,
)
from flowmatch.networks.conditions import AUGMENT
from flowmatch.paths import AffinePath

Method = Literal["cfg", "cfg_zero", "apg"]
Schedule = Literal["constant", "linear", "cosine"]

_OPTIONS: dict[str, Method] = {
    "zero_until": "cfg_zero",
    "eta": "apg",
    "norm_threshold": "apg",
    "momentum": "apg",
}
"""The options of one method each."""


@dataclass(frozen=True, kw_only=True)
class Guidance(Component):
    """How samples are guided. With a weak model given to it, it is autoguidance.

    Args:
        scale: guidance scale; 1 is off, whatever the rest says.
        method: "cfg" (`Guided`), "cfg_zero" (`CFGZero`) or "apg" (`APG`).
        interval: the times `lo <= t <= hi` that are guided.
        schedule: "constant", or a scale that rises over t in [0, 1] from 1 to `2 scale - 1`, its
            mean being `scale`: "linear" or "cosine".
        zero_until: of cfg_zero alone; None is that method's default, here and below.
        eta: of apg alone.
        norm_threshold: of apg alone.
        momentum: of apg alone.
    Raises:
        ValueError: a value is out of its range, or an option is given that the method does not use.
    Source: the methods' own; the schedules: Wang et al. 2024 (see `LinearScale`).
    """

    scale: float = 1.0
    method: Method = "cfg"
    interval: Interval = ALWAYS
    schedule: Schedule = "constant"
    zero_until: float | None = None
    eta: float | None = None
    norm_threshold: float | None = None
    momentum: float | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if value not in known:
                raise ValueError(f"guidance {name} {value!r} is none of {', '.join(known)}")
        for name in self._options():
            if _OPTIONS[name] != self.method:
                raise ValueError(
                    f"{name} is an option of guidance method {_OPTIONS[name]}, not of"
                    f" {self.method}; leave it out or set method={_OPTIONS[name]}"
                )
        if self.zero_until is not None:
            check_zero_until(self.zero_until)
        check_projection(self.eta or 0.0, self.norm_threshold, self.momentum or 0.0)

    @property
    def off(self) -> bool:
        """Whether nothing is guided, so that one evaluation is enough."""
        return self.scale == 1

    @property
    def name(self) -> str:
        """A few words for a protocol, e.g. "1.5" or "apg 2, cosine, t in [0.2, 0.8]"."""
        parts = [f"{self.scale:g}" if self.method == "cfg" else f"{self.method} {self.scale:g}"]
        if self.schedule != "constant":
            parts.append(self.schedule)
        if self.interval != ALWAYS:
            parts.append(f"t in [{self.interval[0]:g}, {self.interval[1]:g}]")
        parts += [f"{name} {value:g}" for name, value in self._options().items()]
        return ", ".join(parts)

    def check(self, flow: Flow, weak: Flow | None = None) -> None:
        """Refuse what cannot be done with this flow.

        Args:
            flow: what is to be guided.
            weak: the weak model of autoguidance, or None.
        Raises:
            ValueError: an unconditional flow without a weak model, a weak model of other data, or
                one with another method than "cfg".
        """
        if weak is not None:
            self._check_method()
            check_weak(flow, weak)
        elif not self.off and not flow.nulls.keys() - {AUGMENT}:
            raise ValueError(
                f"guidance scale {self.scale} needs a conditional model, but this one takes no"
                " condition; set the scale to 1, or give a weak model for autoguidance"
            )

    def around(self, field: Field, *, path: AffinePath, weak: Field | None = None) -> Field:
        """The guided field.

        Args:
            field: what is guided. A `CountNFE` counts the evaluations of the weak field too.
            path: the path that the field was trained on.
            weak: the weak field of autoguidance, or None.
        Returns:
            A field around `field`; `field` itself if guidance is off. Of method "apg" with
            momentum it has a memory: make one for each job.
        Raises:
            ValueError: a weak field with another method than "cfg", or of other data.
        """
        if weak is not None:
            self._check_method()
        if self.off:
            return field
        if weak is not None:
            if isinstance(field, CountNFE) and not isinstance(weak, CountNFE):
                weak = CountNFE(weak, into=field)
            return AutoGuided(field, weak, self._scale(), interval=self.interval)
        if self.method == "cfg":
            return Guided(field, self._scale(), interval=self.interval)
        if self.method == "cfg_zero":
            return CFGZero(field, self._scale(), interval=self.interval, **self._options())
        return APG(field, self._scale(), path, interval=self.interval, **self._options())

    def _scale(self) -> Scale:
        if self.schedule == "constant":
            return self.scale
        kind = LinearScale if self.schedule == "linear" else CosineScale
        return kind(1.0, 2 * self.scale - 1)

    def _options(self) -> dict[str, float]:
        """The options that were given."""
        values = {name: getattr(self, name) for name in _OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    def _check_method(self) -> None:
        if self.method != "cfg":
            raise ValueError(
                f"guidance method {self.method} does not use a weak model; set method=cfg for"
                " autoguidance, or leave the weak model out"
            )
