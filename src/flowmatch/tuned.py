"""Tuning the solver of a run, and the file in the run that keeps what was found.

RUN_DIR/tuned.json has one entry for each budget and guidance: the solver, and how it was found.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

import flowmatch
from flowmatch.flow import Flow
from flowmatch.guidance import CountNFE, Guidance
from flowmatch.paths import AffinePath
from flowmatch.room import require_writable
from flowmatch.runs import WEIGHT_FILES, Weights, load_flow, model_facts, open_run
from flowmatch.sampling import noise, sample
from flowmatch.solvers import GridSolver, SolverConfig, describe
from flowmatch.training.tracking import Bar
from flowmatch.tuning import Cost, Tuned, candidates, tune

FILE = "tuned.json"
_NO_GUIDANCE = Guidance()
_FAR_BELOW = 0.2
"""The reference's error may be this part of the choice's before the table says so."""


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
        seed: stream of the noise; sample i depends on (seed, i), and its class is i mod classes.
        batch: samples computed at once; changes nothing but speed and memory.
    """

    nfe: int
    samples: int = 64
    guidance: Guidance = _NO_GUIDANCE
    kinds: tuple[str, ...] | None = None
    reference_steps: int | None = None
    seed: int = 0
    batch: int = 100

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--nfe", self.nfe, 1),
            ("--num-samples", self.samples, 2),
            ("--reference-steps", self.reference_steps, 1),
            ("--bspp", self.batch, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{flag} must be at least {least}, got {value}")
        if self.guidance.momentum:
            raise ValueError(
                "guidance with momentum depends on the steps themselves, so there is no trajectory"
                " that a solver could be near to; tune without momentum"
            )


def tune_run(
    run_dir: Path,
    job: TuneJob,
    *,
    checkpoint: str = "latest",
    weights: Weights = "ema",
    device: torch.device | str = "cpu",
) -> Tuned:
    """Choose a run's solver for a budget and write it into the run.

    An entry of the same budget and guidance is replaced, others stay.

    Args:
        run_dir: the run directory.
        job: what is wanted.
        checkpoint, weights: whose trajectories, as of `load`.
        device: where to compute.
    Raises:
        ValueError: no run, a job that its model cannot do, or a damaged tuned.json.
    """
    _refuse_checkpoint(run_dir)
    config, folder = open_run(run_dir, checkpoint)
    flow = load_flow(config, folder / WEIGHT_FILES[weights], device=device)
    job.guidance.check(flow)
    cost = network_calls(job.guidance, flow.path)
    among = candidates(job.nfe, path=flow.path, kinds=job.kinds, cost=cost)
    require_writable(run_dir)
    _read(run_dir)  # a damaged file is refused now rather than after the work
    assert flow.shape is not None
    x0 = noise(range(3 * job.samples), flow.shape, stream=job.seed).to(device)
    label = torch.arange(len(x0), device=device) % flow.num_classes if flow.num_classes else None
    bar = _Progress()
    try:
        found = tune(
            job.guidance.around(flow, path=flow.path),
            x0,
            job.nfe,
            label,
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
    facts = model_facts(run_dir, folder, weights)
    _write(run_dir, job, _record(job, found, facts, clamped=_is_images(flow)))
    if found.reference_error > _FAR_BELOW * found.error:
        warnings.warn(
            f"the reference is itself off by about {found.reference_error:.2g}, which is not far"
            f" below {found.error:.2g}; raise --reference-steps above {found.reference.steps}",
            stacklevel=2,
        )
    return found


def read_tuned(
    run_dir: Path,
    *,
    nfe: int | None = None,
    guidance: Guidance = _NO_GUIDANCE,
    weights_hash: str | None = None,
) -> SolverConfig:
    """The solver that a run was tuned to for a budget.

    Args:
        run_dir: the run directory.
        nfe: the budget in network evaluations a sample; None where there is only one.
        guidance: how samples will be guided.
        weights_hash: names the weights that will be sampled from; warns if they are others than
            those tuned with. None does not ask.
    Raises:
        ValueError: nothing is tuned for this, or the file is damaged; says what to do.
    """
    entries = [_ENTRY.validate_python(entry) for entry in _read(run_dir).values()]
    suited = {e.nfe: e for e in entries if _same(e.guidance, guidance)}
    wish = "" if guidance.off else f" --guidance {guidance.scale:g}"
    command = f"`flowmatch tune {run_dir} --nfe {nfe or 'N'}{wish}`"
    if not suited:
        what = "" if guidance.off else f" for {_words(guidance)}"
        raise ValueError(f"{run_dir} has no tuned solver{what}; make one with {command}")
    budgets = ", ".join(map(str, sorted(suited)))
    if nfe is None and len(suited) > 1:
        raise ValueError(
            f"{run_dir} is tuned for {budgets} evaluations; say which with --nfe, or with auto:N"
            " among --solvers"
        )
    if nfe is not None and nfe not in suited:
        raise ValueError(
            f"{run_dir} is tuned for {budgets} evaluations, not for {nfe}; tune it with {command}"
        )
    entry = suited[nfe] if nfe is not None else next(iter(suited.values()))
    if weights_hash is not None and entry.model.get("hash") != weights_hash:
        warnings.warn(
            f"the solver for {entry.nfe} evaluations was tuned on other weights"
            f" ({entry.model.get('hash')}, step {entry.model.get('step')}) than are used now"
            f" ({weights_hash}); it will do, but to tune it anew run {command}",
            stacklevel=2,
        )
    return entry.solver


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


@dataclass(frozen=True)
class _Entry:
    """What must be right in an entry for it to be used."""

    nfe: int
    guidance: Guidance
    solver: SolverConfig
    model: Mapping[str, Any]


_ENTRY: TypeAdapter[_Entry] = TypeAdapter(_Entry)
_SOLVER: TypeAdapter[SolverConfig] = TypeAdapter(SolverConfig)


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


def _record(
    job: TuneJob, found: Tuned, model: Mapping[str, Any], *, clamped: bool
) -> dict[str, Any]:
    return {
        "nfe": job.nfe,
        "guidance": asdict(job.guidance),
        "solver": _SOLVER.dump_python(found.solver, mode="json"),  # type: ignore[arg-type]
        "model": dict(model),
        "error": found.error,
        "compared_error": found.best.compared,
        "fitted_error": found.best.fitted,
        "baselines": {name: _finite(tried.error) for name, tried in found.baselines.items()},
        "others": [describe(t.solver) | {"error": _finite(t.error)} for t in found.others],
        "samples": found.samples,
        "held_out": found.held_out,
        "seed": job.seed,
        "clamped": clamped,
        "reference": describe(found.reference) | {"error": found.reference_error},
        "evaluations": found.evaluations,
        "seconds": round(found.seconds, 3),
        "versions": {"flowmatch": flowmatch.__version__, "torch": torch.__version__},
    }


def _write(run_dir: Path, job: TuneJob, record: Mapping[str, Any]) -> None:
    """Put an entry into the file in place of an earlier one, whole or not at all."""
    key = str(job.nfe) if job.guidance.off else f"{job.nfe}, {_words(job.guidance)}"
    content = _read(run_dir) | {key: record}
    partial = run_dir / f".{FILE}.partial"
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, run_dir / FILE)


def _read(run_dir: Path) -> dict[str, Any]:
    """The entries of the file, each one valid; none if there is no file."""
    path = run_dir / FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        for entry in content.values():
            _ENTRY.validate_python(entry)
    except (OSError, ValueError) as error:  # a ValidationError and undecodable text are among them
        raise ValueError(
            f"{path} cannot be read ({_first(error)}); remove it and tune anew"
        ) from None
    return content


def _first(error: Exception) -> str:
    """The first mistake, on one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]


def _same(a: Guidance, b: Guidance) -> bool:
    """Whether two guidances are one; where it is off, the rest does not matter."""
    return a == b or (a.off and b.off)


def _words(guidance: Guidance) -> str:
    """A guidance by what it changes, e.g. "guidance scale=2.0, interval=(0.1, 0.9)"."""
    plain = asdict(_NO_GUIDANCE)
    changed = {k: v for k, v in asdict(guidance).items() if v != plain[k]}
    return "guidance " + ", ".join(f"{k}={v}" for k, v in changed.items())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_images(flow: Flow) -> bool:
    return flow.shape is not None and len(flow.shape) == 3


def _refuse_checkpoint(run_dir: Path) -> None:
    if (run_dir / "model.safetensors").is_file():
        raise ValueError(
            f"{run_dir} is a checkpoint; give the run directory and --checkpoint {run_dir}"
        )
