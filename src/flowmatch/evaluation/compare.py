"""Two tables beside each other, ranked only where their protocols agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmatch.config import flat
from flowmatch.evaluation.document import read_document
from flowmatch.evaluation.glossary import better

_THE_COMPARED = ("model.",)
"""What may differ because it is what is compared: the weights and where they come from."""
LEVEL = 0.05
"""Below this chance of a difference among sets of one model, one of two is called better."""
_ROW = ("solver", "steps", "time_grid", "safe_end", "options")


@dataclass(frozen=True)
class Verdict:
    """One metric of one row in both tables.

    Args:
        row: which row, e.g. "heun:50".
        metric: its name.
        a, b: the two numbers.
        p: probability that sets of one model differ as much, or None without repeats.
        better: "A", "B", or why neither is called better.
    """

    row: str
    metric: str
    a: float
    b: float
    p: float | None
    better: str

    def __str__(self) -> str:
        p = "" if self.p is None else f"  (p = {self.p:.2g})"
        return (
            f"{self.row:<12} {self.metric:<16} A {self.a:<9.4g} B {self.b:<9.4g}"
            f" better: {self.better}{p}"
        )


def compare(a: Path, b: Path, *, allow: Sequence[str] = ()) -> list[Verdict]:
    """Rank the numbers of two tables, row by row.

    Args:
        a, b: JSON files of `flowmatch evaluate`.
        allow: keys of the protocol that may differ, e.g. "versions.torch" or "guidance".
    Raises:
        ValueError: the protocols differ, or no row is in both; names the difference.
    """
    first, second = read_document(a), read_document(b)
    differences = differing(first["protocol"], second["protocol"], allow=allow)
    if differences:
        listed = "; ".join(f"{k} is {x!r} in {a} and {y!r} in {b}" for k, x, y in differences)
        raise ValueError(
            f"these numbers cannot be ranked, their protocols differ: {listed}. Evaluate both the"
            f" same way, or pass --allow {differences[0][0]} if you know that it does not matter"
        )
    ours = {_key(row): row for row in first["rows"]}
    theirs = {_key(row): row for row in second["rows"]}
    common = [key for key in ours if key in theirs]
    if not common:
        raise ValueError(
            "these tables have no row in common: A has"
            f" {', '.join(map(_name, ours.values())) or 'none'}, B has"
            f" {', '.join(map(_name, theirs.values())) or 'none'}; evaluate both with the same"
            " --solvers"
        )
    return [v for key in common for v in _verdicts(ours[key], theirs[key])]


def differing(
    a: Mapping[str, Any], b: Mapping[str, Any], *, allow: Sequence[str] = ()
) -> list[tuple[str, Any, Any]]:
    """The keys in which two protocols differ, besides the model that is compared."""
    ours, theirs = flat(a), flat(b)
    keys = [*ours, *(k for k in theirs if k not in ours)]
    may = (*_THE_COMPARED, *allow)
    return [
        (k, ours.get(k), theirs.get(k))
        for k in keys
        if ours.get(k) != theirs.get(k) and not any(_covers(m, k) for m in may)
    ]


def _covers(allowed: str, key: str) -> bool:
    return key == allowed or key.startswith(allowed.rstrip(".") + ".")


def _key(row: Mapping[str, Any]) -> str:
    return repr([row.get(k) for k in _ROW])


def _name(row: Mapping[str, Any]) -> str:
    steps = f":{row['steps']}" if row.get("steps") else ""
    return f"{row.get('solver') or 'stored'}{steps}"


def _verdicts(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Verdict]:
    found = []
    for metric, x in a["metrics"].items():
        y = b["metrics"].get(metric)
        if metric.endswith("_excess"):  # the same floor is taken from both
            continue
        if x is None or y is None or better(metric) is None:
            continue
        p = _chance([s[metric] for s in a.get("sets", ())], [s[metric] for s in b.get("sets", ())])
        found.append(Verdict(_name(a), metric, x, y, p, _better(metric, x, y, p)))
    return found


def _chance(a: Sequence[float], b: Sequence[float]) -> float | None:
    """How likely sets of one law differ as much: Welch's t test; None without two sets each."""
    from scipy.stats import ttest_ind

    if min(len(a), len(b)) < 2:
        return None
    if len({*a}) == len({*b}) == 1:  # no spread at all
        return float(a[0] == b[0])
    return float(ttest_ind(a, b, equal_var=False).pvalue)


def _better(metric: str, a: float, b: float, p: float | None) -> str:
    if a == b:
        return "equal"
    if p is not None and p >= LEVEL:
        return "neither: sets of one model differ as much"
    winner = "A" if (a > b) == (better(metric) == "higher") else "B"
    return winner if p is not None else f"{winner} (without repeats, so nobody knows)"
