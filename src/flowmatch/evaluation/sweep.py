"""A sweep: one row a solver setting, each row's sets drawn and measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowmatch.dealing import Dealt, classes_dealt
from flowmatch.evaluation.extraction import SampleSet, Subject, extract
from flowmatch.evaluation.scores import ImageScores, Scores
from flowmatch.flow import Flow
from flowmatch.guidance import CountNFE, Guidance
from flowmatch.metrics import path_energy, straightness
from flowmatch.randomness import keyed_generator
from flowmatch.sampling import bind, noise, sample
from flowmatch.solvers import Euler, GridSolver, Solver
from flowmatch.training.settings import LEAST_EVALUATED

if TYPE_CHECKING:
    from accelerate import Accelerator

    from flowmatch.evaluation.stored import Stored


@dataclass(frozen=True)
class Sweep:
    """How many samples are drawn, and how.

    Args:
        count: samples of a set.
        repeats: disjoint sets of them; set k has the samples k * count, ..., (k + 1) * count - 1.
        batch: samples that a process draws at once; changes nothing but speed and memory.
        seed: stream of the noise.
        guidance: how the field is guided.
        dealt: what samples are conditioned on; None is all classes in turn.
    """

    count: int
    repeats: int = 1
    batch: int = 100
    seed: int = 0
    guidance: Guidance = Guidance()
    dealt: Dealt | None = None

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--num-samples", self.count, LEAST_EVALUATED),
            ("--repeats", self.repeats, 1),
            ("--bspp", self.batch, 1),
        ):
            if value < least:
                raise ValueError(f"{flag} must be at least {least}, got {value}")

    def over(self, stored: int, *, all_of_it: bool) -> Sweep:
        """The same over so many stored samples: `count` of each set, or all that there are."""
        count = stored // self.repeats if all_of_it else self.count
        count = max(count, LEAST_EVALUATED)
        if count * self.repeats > stored:
            raise ValueError(
                f"{self.repeats} set(s) of {count:,} need {count * self.repeats:,} samples, but"
                f" there are {stored:,}; lower --num-samples or --repeats"
            )
        return replace(self, count=count)

    def conditions(self, flow: Flow) -> Dealt:
        """What the samples of a flow are conditioned on."""
        return classes_dealt(flow.num_classes) if self.dealt is None else self.dealt

    def sets(self) -> list[range]:
        """The indices of each set."""
        return [range(k * self.count, (k + 1) * self.count) for k in range(self.repeats)]


class FlowSamples:
    """Samples of a flow: sample i depends on (seed, i) alone, and so do its conditions.

    Args:
        flow: the model, on the accelerator's device.
        solver: the integrator.
        sweep: seed of the noise, and guidance.
        accelerator: device and precision.
        weak: the weak model of autoguidance, or None.
    """

    def __init__(
        self,
        flow: Flow,
        solver: Solver,
        sweep: Sweep,
        accelerator: Accelerator,
        *,
        weak: Flow | None = None,
    ) -> None:
        self.flow, self.solver, self.sweep = flow, solver, sweep
        self._dealt = sweep.conditions(flow)
        self.accelerator = accelerator
        self._counted = CountNFE(flow)
        self._field = sweep.guidance.around(self._counted, path=flow.path, weak=weak)
        self.nfe = 0

    def draw(self, indices: range) -> tuple[Tensor, Tensor | None]:
        assert self.flow.shape is not None
        x0 = noise(indices, self.flow.shape, stream=self.sweep.seed).to(self.accelerator.device)
        cond = self._dealt(indices, x0.device)
        self._counted.nfe = 0
        with self.accelerator.autocast():
            x1 = sample(
                self._field,
                x0,
                self.solver,
                cond,
                path=self.flow.path,
                seeds=indices,
                stream=self.sweep.seed,
            )
            x1 = self.flow.decode(x1)
        self.nfe = self._counted.nfe
        return x1.float(), (cond or {}).get("label")


class StoredSamples:
    """Samples that are there already, in an order of their own: a folder may be sorted by class."""

    nfe = 0

    def __init__(self, stored: Stored, device: torch.device) -> None:
        self.stored, self.device = stored, device
        generator = keyed_generator("stored samples")
        self._order = torch.randperm(len(stored.x), generator=generator)

    def draw(self, indices: range) -> tuple[Tensor, Tensor | None]:
        rows = self._order[indices.start : indices.stop]
        labels = self.stored.labels
        return self.stored.x[rows].to(self.device), labels[rows] if labels is not None else None


def measure_row(
    subject: Subject,
    sweep: Sweep,
    scores: Scores,
    accelerator: Accelerator,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], SampleSet]:
    """The numbers of one row over its sets, and the first set, for pictures.

    `metrics` has the mean over the sets, `spread` half the distance between the largest and the
    smallest (absent for one set), `sets` each set's own numbers.
    """
    net = scores.net if isinstance(scores, ImageScores) else None
    found: list[dict[str, float]] = []
    drawing, measuring, nonfinite = 0.0, 0.0, 0
    first = None
    for indices in sweep.sets():
        samples = extract(subject, indices, net, accelerator, batch=sweep.batch, progress=progress)
        began = time.perf_counter()
        found.append(scores.measure(samples) if accelerator.is_main_process else {})
        measuring += time.perf_counter() - began
        drawing += samples.seconds
        nonfinite += samples.nonfinite
        first = first or samples  # the others are let go: fifty thousand vectors are large
    assert first is not None
    columns = {k: [f[k] for f in found] for k in found[0]}
    row: dict[str, Any] = {
        "nfe": first.nfe or None,
        "metrics": {k: sum(v) / len(v) for k, v in columns.items()},
        "seconds": round(drawing / len(found), 3),
        "seconds_metrics": round(measuring / len(found), 3),
        "nonfinite": nonfinite,
    }
    if len(found) > 1:
        row["spread"] = {k: (max(v) - min(v)) / 2 for k, v in columns.items()}
        row["sets"] = found
    if (classes := scores.classes(first)) is not None:
        row["classes"] = classes
    return row, first


def solver_facts(solver: Solver) -> dict[str, Any]:
    """What a row says about its solver."""
    values = asdict(solver)
    facts: dict[str, Any] = {"solver": values.pop("kind"), "steps": values.pop("steps", None)}
    grid = solver.grid if isinstance(solver, GridSolver) else None
    facts["time_grid"] = grid.name if grid is not None else "adaptive"
    values.pop("grid", None)
    facts["safe_end"] = values.pop("safe_end")
    return facts | ({"options": values} if values else {})


def transport(flow: Flow, sweep: Sweep, *, steps: int = 100, count: int = 500) -> dict[str, float]:
    """Path energy and straightness of a flow's own trajectories, on a fine Euler grid.

    Independent of the row's solver: it is the field that is straight or not.
    """
    assert flow.shape is not None
    device = next(flow.parameters()).device
    x0 = noise(range(min(count, sweep.count)), flow.shape, stream=sweep.seed).to(device)
    cond = sweep.conditions(flow)(range(len(x0)), device)
    times, states = [0.0], [x0]
    with torch.no_grad():
        for t, x in Euler(steps=steps).trajectory(bind(flow, cond), x0):
            times.append(t)
            states.append(x)
    path, grid = torch.stack(states).cpu(), torch.tensor(times)
    if not path.isfinite().all():
        return {"path_energy": math.nan, "straightness": math.nan}
    return {"path_energy": path_energy(path, grid), "straightness": straightness(path, grid)}
