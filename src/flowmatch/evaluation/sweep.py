"""A sweep: one row a solver setting, each row's sets drawn, measured, and written at once."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowmatch.evaluation.extraction import SampleSet, Subject, extract
from flowmatch.evaluation.protocol import flat, sentence
from flowmatch.evaluation.scores import ImageScores, Scores
from flowmatch.flow import Flow
from flowmatch.guidance import CountNFE, Guided
from flowmatch.metrics import path_energy, straightness
from flowmatch.sampling import bind, noise, sample
from flowmatch.solvers import FixedStep, Solver

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
        guidance: classifier-free guidance scale; 1 is off.
    """

    count: int
    repeats: int = 1
    batch: int = 100
    seed: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        for flag, value in (
            ("--num-samples", self.count),
            ("--repeats", self.repeats),
            ("--bspp", self.batch),
        ):
            if value < 1:
                raise ValueError(f"{flag} must be at least 1, got {value}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"--guidance must be a finite number, got {self.guidance}")

    def check(self, flow: Flow) -> None:
        """Refuse what the flow cannot do."""
        if self.guidance != 1 and flow.num_classes is None:
            raise ValueError("guidance needs a class-conditional model; leave out --guidance")

    def over(self, stored: int, *, all_of_it: bool) -> Sweep:
        """The same over so many stored samples: `count` of each set, or all that there are."""
        count = stored // self.repeats if all_of_it else self.count
        if count * self.repeats > stored or count < 1:
            raise ValueError(
                f"{self.repeats} set(s) of {self.count:,} need {self.count * self.repeats:,}"
                f" samples, but there are {stored:,}; lower --num-samples or --repeats"
            )
        return replace(self, count=count)

    def sets(self) -> list[range]:
        """The indices of each set."""
        return [range(k * self.count, (k + 1) * self.count) for k in range(self.repeats)]


class FlowSamples:
    """Samples of a flow: sample i depends on (seed, i) alone, its class is i mod classes.

    Args:
        flow: the model, on the accelerator's device.
        solver: the integrator.
        sweep: seed of the noise, and guidance.
        accelerator: device and precision.
    """

    def __init__(self, flow: Flow, solver: Solver, sweep: Sweep, accelerator: Accelerator) -> None:
        self.flow, self.solver, self.sweep = flow, solver, sweep
        self.accelerator = accelerator
        self._counted = CountNFE(flow)
        guided = sweep.guidance != 1
        self._field = Guided(self._counted, sweep.guidance) if guided else self._counted
        self.nfe = 0

    def draw(self, indices: range) -> tuple[Tensor, Tensor | None]:
        assert self.flow.shape is not None
        x0 = noise(indices, self.flow.shape, stream=self.sweep.seed).to(self.accelerator.device)
        labels = None
        if self.flow.num_classes is not None:
            labels = torch.tensor(indices, device=x0.device) % self.flow.num_classes
        self._counted.nfe = 0
        with self.accelerator.autocast():
            x1 = sample(self._field, x0, self.solver, labels)
        self.nfe = self._counted.nfe
        return x1.float(), labels


class StoredSamples:
    """Samples that are there already."""

    nfe = 0

    def __init__(self, stored: Stored, device: torch.device) -> None:
        self.stored, self.device = stored, device

    def draw(self, indices: range) -> tuple[Tensor, Tensor | None]:
        rows = slice(indices.start, indices.stop)
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
    drawn: list[SampleSet] = []
    measuring = 0.0
    for indices in sweep.sets():
        samples = extract(subject, indices, net, accelerator, batch=sweep.batch, progress=progress)
        began = time.perf_counter()
        found.append(scores.measure(samples) if accelerator.is_main_process else {})
        measuring += time.perf_counter() - began
        drawn.append(samples)
    row: dict[str, Any] = {
        "nfe": drawn[0].nfe if drawn[0].nfe else None,
        "metrics": {k: sum(f[k] for f in found) / len(found) for k in found[0]},
        "seconds": round(sum(d.seconds for d in drawn) / len(drawn), 3),
        "seconds_metrics": round(measuring / len(drawn), 3),
        "nonfinite": sum(d.nonfinite for d in drawn),
    }
    if len(found) > 1:
        row["spread"] = {k: (max(v) - min(v)) / 2 for k, v in _columns(found).items()}
        row["sets"] = found
    if (classes := scores.classes(drawn[0])) is not None:
        row["classes"] = classes
    return row, drawn[0]


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {k: [row[k] for row in rows] for k in rows[0]}


def solver_facts(solver: Solver) -> dict[str, Any]:
    """What a row says about its solver."""
    steps = solver.steps if isinstance(solver, FixedStep) else None
    facts: dict[str, Any] = {"solver": asdict(solver)["kind"], "steps": steps}
    facts["time_grid"] = "uniform" if steps else "adaptive"
    facts["safe_end"] = solver.safe_end
    rest = {k: v for k, v in asdict(solver).items() if k not in ("kind", "steps", "safe_end")}
    return facts | ({"options": rest} if rest else {})


def transport(flow: Flow, sweep: Sweep, *, steps: int = 100, count: int = 500) -> dict[str, float]:
    """Path energy and straightness of a flow's own trajectories, on a fine Euler grid.

    Independent of the row's solver: it is the field that is straight or not.
    """
    from flowmatch.solvers import Euler

    assert flow.shape is not None
    device = next(flow.parameters()).device
    x0 = noise(range(min(count, sweep.count)), flow.shape, stream=sweep.seed).to(device)
    labels = torch.arange(len(x0), device=device) % flow.num_classes if flow.num_classes else None
    times, states = [0.0], [x0]
    with torch.no_grad():
        for t, x in Euler(steps=steps).trajectory(bind(flow, labels), x0):
            times.append(t)
            states.append(x)
    path, grid = torch.stack(states).cpu(), torch.tensor(times)
    return {"path_energy": path_energy(path, grid), "straightness": straightness(path, grid)}


class Document:
    """The table of one protocol as a JSON file, whole after every row.

    A file of the same protocol keeps its rows: a sweep that was killed goes on, another solver
    joins the table.

    Args:
        path: the file; None keeps it in memory.
        protocol: what all rows have in common.
    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path | None, protocol: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"protocol": protocol, "rows": []}
        if path is None or not path.exists():
            return
        found = read_document(path)
        before, now = flat(found["protocol"]), flat(json.loads(json.dumps(protocol)))
        other = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if other:
            key = other[0]
            raise ValueError(
                f"{path} holds numbers of another protocol ({key} was {before.get(key)!r}, is"
                f" {now.get(key)!r}); choose another --json"
            )
        self.content = found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        rows: list[dict[str, Any]] = self.content["rows"]
        return rows

    def has(self, facts: dict[str, Any]) -> bool:
        """Whether a row of these solver facts is there."""
        return any(all(row.get(k) == v for k, v in facts.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row with its protocol sentence, and write the file."""
        row["protocol"] = sentence(self.content["protocol"], row)
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(_plain(self.content), indent=1, allow_nan=False) + "\n")
        os.replace(partial, self.path)


def read_document(path: Path) -> dict[str, Any]:
    """A table that `flowmatch evaluate` wrote.

    Raises:
        ValueError: no such file, or another kind of file.
    """
    if not path.is_file():
        raise ValueError(f"there is no evaluation {path}")
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or not content.keys() >= {"protocol", "rows"}:
        raise ValueError(f"{path} is no evaluation: it has no protocol and rows")
    return content


def _plain(node: Any) -> Any:
    """JSON knows no NaN: numbers that are none become null."""
    if isinstance(node, dict):
        return {k: _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
