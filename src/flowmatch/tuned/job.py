"""What is tuned for: a budget, a guidance, and how much work may go into the search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from flowmatch.guidance import CountNFE, Guidance
from flowmatch.paths import AffinePath
from flowmatch.sampling import sample
from flowmatch.solvers import GridSolver, by_name
from flowmatch.training.settings import LEAST_EVALUATED
from flowmatch.tuning import Cost

Judge = Literal["trajectories", "samples"]

_OWN_STREAMS = 2**40
"""What is tuned on some noise must not be measured on the same."""


@dataclass(frozen=True, kw_only=True)
class TuneJob:
    """What is tuned for, and on what.

    Args:
        nfe: the budget in network evaluations a sample; guidance takes two for a field call.
        samples: trajectories that are fitted to; as many others decide between what was fitted, and
            as many give the error.
        guidance: how samples will be guided.
        kinds: the solvers to try, by name; None is all that are suitable.
        reference_steps: of the fine solver; None as `tune` says.
        judge: what decides in the end: nearness to the "trajectories", or the "samples", for which
            solvers that add noise are tried as well.
        judged: samples that the solvers in the last round are judged by.
        seed: which noise and classes; sample i depends on (seed, i). It is
            other noise than that which `sample` and `evaluate` draw with the same seed.
        batch: samples computed at once; changes nothing but speed and memory.
    """

    nfe: int
    samples: int = 64
    guidance: Guidance = Guidance()
    kinds: tuple[str, ...] | None = None
    reference_steps: int | None = None
    judge: Judge = "trajectories"
    judged: int = 1000
    seed: int = 0
    batch: int = 100

    @property
    def on_trajectories(self) -> tuple[str, ...] | None:
        """The kinds that can follow a trajectory; those that add noise are for the samples."""
        if self.kinds is None or self.judge == "trajectories":
            return self.kinds
        kinds = tuple(kind for kind in self.kinds if not by_name(kind).stochastic)
        if not kinds:
            raise ValueError(
                f"{' and '.join(self.kinds)} adds noise; name a solver that follows trajectories"
                " beside it, e.g. heun"
            )
        return kinds

    @property
    def stream(self) -> int:
        """The family of seeds of its noise."""
        return _OWN_STREAMS + self.seed

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--nfe", self.nfe, 1),
            ("--num-samples", self.samples, 2),
            ("--reference-steps", self.reference_steps, self.nfe + 1),
            ("--judged", self.judged, LEAST_EVALUATED),
            ("--bspp", self.batch, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{flag} must be at least {least}, got {value}")
        if self.guidance.momentum:
            raise ValueError(
                "guidance with momentum depends on the steps themselves, so there is no trajectory"
                " that a solver could be near to; tune without momentum"
            )


def network_calls(guidance: Guidance, path: AffinePath) -> Cost:
    """What a solver costs under guidance: counted by running it on a field that does nothing.

    Where only an interval is guided, the number depends on where the grid's times lie.
    """

    @cache
    def cost(solver: GridSolver) -> int:
        counted = CountNFE(lambda x, t, cond: torch.zeros_like(x))
        field = guidance.around(counted, path=path)
        sample(field, torch.zeros(1, 1), solver, torch.zeros(1, dtype=torch.long), path=path)
        return counted.nfe

    return cost
