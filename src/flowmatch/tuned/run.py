"""Tuning the solver of a run, and writing the choice into the run."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter

import flowmatch
from flowmatch.dealing import Dealt, others_of, usual_conditions
from flowmatch.evaluation import Request, prepare
from flowmatch.facts import model_facts
from flowmatch.flow import Flow
from flowmatch.randomness import keyed_generator
from flowmatch.room import require_writable
from flowmatch.runs import load_flow, open_run, weights_file
from flowmatch.sampling import noise
from flowmatch.solvers import GridSolver, SolverConfig, describe
from flowmatch.training.tracking import Bar
from flowmatch.tuned.file import read_entries, write_entry
from flowmatch.tuned.job import TuneJob, network_calls
from flowmatch.tuned.judge import Judged, contenders, judge
from flowmatch.tuned.judge import as_table as judged_table
from flowmatch.tuning import Tried, Tuned, as_table, candidates, tune

if TYPE_CHECKING:
    from accelerate import Accelerator

_FAR_BELOW = 0.2
"""The reference's error may be this part of the choice's before a warning says so."""

_ROUNDING = 1e-5
"""A reference this good is limited by float32, not by its steps: every solver may reach it."""

_SOLVER: TypeAdapter[SolverConfig] = TypeAdapter(SolverConfig)


@dataclass(frozen=True)
class Outcome:
    """What was found by the trajectories, and by the samples if they were asked."""

    found: Tuned
    judged: tuple[Judged, ...] = ()
    """Best first; empty where the trajectories decided."""
    metric: str = ""

    @property
    def solver(self) -> GridSolver:
        """The choice."""
        return self.judged[0].solver if self.judged else self.found.solver

    def as_table(self) -> str:
        """The ranking by trajectories, and then that by samples."""
        tables = [as_table(self.found)]
        if self.judged:
            tables.append(judged_table(self.judged, self.metric))
        return "\n\n".join(tables)


def tune_run(
    run_dir: Path,
    job: TuneJob,
    *,
    checkpoint: str = "latest",
    weights: str = "ema",
    accelerator: Accelerator,
    say: Callable[[str], object] = print,
) -> Outcome:
    """Choose a run's solver for a budget and write it into the run.

    An entry of the same budget and guidance is replaced, others stay.

    Args:
        run_dir: the run directory.
        job: what is wanted.
        checkpoint, weights: whose trajectories, as of `load`.
        accelerator: where to compute, in one process.
        say: tells what takes a while.
    Raises:
        ValueError: no run, a job that its model cannot do, a damaged tuned.json, or a reference
            that turns out worse than what it should judge; then nothing is written.
    """
    _refuse_checkpoint(run_dir)
    config, folder = open_run(run_dir, checkpoint)
    if run_dir.resolve() not in folder.resolve().parents:
        raise ValueError(f"{folder} is no checkpoint of {run_dir}; tune the run that it belongs to")
    device = accelerator.device
    flow = load_flow(config, weights_file(folder, weights), device=device)
    job.guidance.check(flow)
    cost = network_calls(job.guidance, flow.path)
    among = candidates(job.nfe, path=flow.path, kinds=job.on_trajectories, cost=cost)
    require_writable(run_dir)
    read_entries(run_dir)  # a damaged file is refused now rather than after the work
    assert flow.shape is not None
    assert flow.decoded_shape is not None
    scores = None
    if job.judge == "samples":
        conditional = flow.num_classes is not None
        scores = prepare(
            Request(), flow.decoded_shape, config, accelerator, conditional=conditional, say=say
        )
    x0 = noise(range(3 * job.samples), flow.shape, stream=job.stream).to(device)
    dealt = usual_conditions(flow, config.data, max(len(x0), job.judged))
    cond = (dealt if others_of(flow) else _shuffled(flow.num_classes, job))(range(len(x0)), device)
    bar = _Progress()
    try:
        found = tune(
            job.guidance.around(flow, path=flow.path),
            x0,
            job.nfe,
            cond,
            path=flow.path,
            among=among,
            cost=cost,
            reference_steps=job.reference_steps,
            clamp=_is_images(flow),
            batch=job.batch,
            progress=bar if sys.stderr.isatty() else None,
        )
    finally:
        bar.close()
    _check_reference(found)
    outcome = Outcome(found)
    if scores is not None:
        among_all = contenders(found, job, cost)
        judged = judge(flow, among_all, job, cost, scores, accelerator, dealt=dealt)
        outcome = Outcome(found, tuple(judged), scores.primary)
    facts = model_facts(run_dir, folder, weights, config)
    record = _record(job, outcome, facts, clamped=_is_images(flow))
    write_entry(run_dir, job.nfe, job.guidance, record)
    return outcome


def _shuffled(classes: int | None, job: TuneJob) -> Dealt:
    """All classes in a random order, over and over: of many classes, any part sees a mixture."""
    if classes is None:
        return Dealt({})
    order = torch.randperm(classes, generator=keyed_generator("tuned classes", job.stream))
    return Dealt({"label": order})


def _check_reference(found: Tuned) -> None:
    if found.reference_error < _ROUNDING:
        return
    off = f"the reference is itself off by about {found.reference_error:.2g}"
    more = f"raise --reference-steps above {found.reference.steps}"
    if found.reference_error >= found.error:
        raise ValueError(
            f"{off}, no less than the {found.error:.2g} of what it chose, so nothing was written;"
            f" {more}"
        )
    if found.reference_error > _FAR_BELOW * found.error:
        warnings.warn(f"{off}, and what it chose by {found.error:.2g}; {more}", stacklevel=3)


def _record(
    job: TuneJob, outcome: Outcome, model: Mapping[str, Any], *, clamped: bool
) -> dict[str, Any]:
    found = outcome.found
    tried = (found.best, *found.others)
    record = {
        "nfe": job.nfe,
        "guidance": asdict(job.guidance),
        "solver": _SOLVER.dump_python(outcome.solver, mode="json"),  # type: ignore[arg-type]
        "judge": job.judge,
        "model": dict(model),
        # none of a solver that adds noise, nor of one that the search by trajectories left out
        **next((_errors(t) for t in tried if t.solver == outcome.solver), {"error": None}),
        "baselines": {name: _finite(t.error) for name, t in found.baselines.items()},
        "others": [describe(t.solver) | _errors(t) for t in tried if t.solver != outcome.solver],
        "samples": found.samples,
        "held_out": found.held_out,
        "seed": job.seed,
        "clamped": clamped,
        "reference": describe(found.reference) | {"error": found.reference_error},
        "evaluations": found.evaluations,
        "seconds": round(found.seconds, 3),
        "versions": {"flowmatch": flowmatch.__version__, "torch": torch.__version__},
    }
    if outcome.judged:
        record["judged"] = [
            describe(j.solver) | {outcome.metric: _finite(j.distance), "samples": j.samples}
            for j in outcome.judged
        ]
    return record


def _errors(tried: Tried) -> dict[str, float | None]:
    return {
        "error": _finite(tried.error),
        "compared_error": _finite(tried.compared),
        "fitted_error": _finite(tried.fitted),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Progress:
    """A bar that appears when the amount of work is known."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        self._bar = self._bar or Bar(total, label="tuning")
        self._bar.advance(done - self._shown)
        self._shown = done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _is_images(flow: Flow) -> bool:
    """Whether samples lie in [-1, 1]; latents do not."""
    return flow.shape is not None and len(flow.shape) == 3 and flow.decoder is None


def _refuse_checkpoint(run_dir: Path) -> None:
    if (run_dir / "model.safetensors").is_file():
        raise ValueError(
            f"{run_dir} is a checkpoint; give the run directory and --checkpoint {run_dir}"
        )
