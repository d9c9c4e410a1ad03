"""The file in a run that keeps what its solver was tuned to.

RUN_DIR/tuned.json has one entry for each budget and guidance: the solver, and how it was found.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowmatch.guidance import Guidance
from flowmatch.solvers import SolverConfig

FILE = "tuned.json"
_NO_GUIDANCE = Guidance()


def read_tuned(
    run_dir: Path,
    *,
    nfe: int | None = None,
    guidance: Guidance = _NO_GUIDANCE,
    weights_hash: str | None = None,
) -> SolverConfig:
    """The solver that a run was tuned to for a budget.

    Args:
        run_dir: the run directory, or a checkpoint folder in it.
        nfe: the budget in network evaluations a sample; None where there is only one.
        guidance: how samples will be guided.
        weights_hash: names the weights that will be sampled from; warns if they are others than
            those tuned with. None does not ask.
    Raises:
        ValueError: nothing is tuned for this, or the file is damaged; says what to do.
    """
    if (run_dir / "model.safetensors").is_file():
        # a choice belongs to the run, not to a checkpoint of it
        run_dir = run_dir.resolve().parents[1]
    entries = [_ENTRY.validate_python(entry) for entry in read_entries(run_dir).values()]
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


@dataclass(frozen=True)
class _Entry:
    """What must be right in an entry for it to be used."""

    nfe: int
    guidance: Guidance
    solver: SolverConfig
    model: Mapping[str, Any]


_ENTRY: TypeAdapter[_Entry] = TypeAdapter(_Entry)


def write_entry(run_dir: Path, nfe: int, guidance: Guidance, record: Mapping[str, Any]) -> None:
    """Put an entry into the file in place of an earlier one, whole or not at all."""
    key = str(nfe) if guidance.off else f"{nfe}, {_words(guidance)}"
    content = read_entries(run_dir) | {key: record}
    partial = run_dir / f".{FILE}.partial"
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, run_dir / FILE)


def read_entries(run_dir: Path) -> dict[str, Any]:
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
