"""What the metrics of an evaluation mean, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Better = Literal["lower", "higher"]


class Meaning(NamedTuple):
    """A metric, or with a further `_...` behind its name a family of them."""

    name: str
    arrow: Literal["↓", "↑", "→1", "→0.5", "→real", ""]
    text: str


_MEANINGS = (
    Meaning("fd", "↓", "Fréchet distance between features of samples and reference"),
    Meaning("fid", "↓", "Fréchet distance between Inception features"),
    Meaning("kd", "↓", "kernel distance between features of samples and reference"),
    Meaning("kid", "↓", "kernel distance between Inception features"),
    Meaning("is", "↑", "inception score: how distinct and varied the recognised classes are"),
    Meaning("precision", "↑", "share of samples that lie among the reference"),
    Meaning("recall", "↑", "share of the reference that lies among the samples"),
    Meaning("density", "↑", "how densely the reference surrounds the samples"),
    Meaning("coverage", "↑", "share of the reference with a sample nearby"),
    Meaning("class_agreement", "↑", "share of samples recognised as the class asked for"),
    Meaning("clipped", "", "share of pixels outside [−1, 1]"),
    Meaning("w2", "↓", "Wasserstein distance between samples and reference"),
    Meaning("sliced_w2", "↓", "Wasserstein distance over random directions"),
    Meaning("mmd2", "↓", "squared maximum mean discrepancy; about 0 for equal laws"),
    Meaning("energy", "↓", "energy distance; about 0 for equal laws"),
    Meaning("c2st", "→0.5", "how often a classifier tells samples from data; 0.5 is a coin"),
    Meaning("nn_ratio", "→1", "nn_samples over nn_held_out: 1 for new data, 0 for copies"),
    Meaning("nn_held_out", "", "the same distance of held-out data"),
    Meaning("nn", "", "median distance to the nearest training sample"),
    Meaning("authentic_held_out", "", "that share of held-out data"),
    Meaning("authentic", "→real", "share of samples that are no copies"),
)
_MEMORISATION = ("nn", "authentic")
_EXCESS = "_excess"


def headed(metric: str) -> str:
    """A metric's name with an arrow towards the better side."""
    known = _meaning(metric)
    return f"{metric} {known.arrow}".strip() if known else metric


def better(metric: str) -> Better | None:
    """Which way is better; None where there is no such way or it is not known."""
    known = _meaning(metric)
    ways: dict[str, Better] = {"↓": "lower", "↑": "higher"}
    return ways.get(known.arrow) if known else None


def explained(metrics: Iterable[str]) -> dict[str, str]:
    """What each metric is, as far as that is known."""
    told = {}
    for metric in metrics:
        known = _meaning(metric)
        if metric.endswith(_EXCESS):
            base = metric.removesuffix(_EXCESS)
            told[metric] = f"what lies above the {base} that so few samples have anyway"
        elif known:
            told[metric] = known.text
    return told


def is_memorisation(metric: str) -> bool:
    """Whether a metric asks how near samples come to training data."""
    return any(_belongs(metric, name) for name in _MEMORISATION)


def drawn(metrics: Iterable[str]) -> list[str]:
    """The metrics worth a chart: better one way; of a distance and its excess, the excess.

    Anchors stand for another number of images, and only the excess compares across numbers.
    """
    names = list(metrics)
    return [m for m in names if better(m) is not None and f"{m}{_EXCESS}" not in names]


def primary(metrics: Iterable[str]) -> str | None:
    """The metric to rank by: a Fréchet distance if there is one, else the first that can rank."""
    names = [m for m in metrics if better(m) is not None and not m.endswith(_EXCESS)]
    frechet = [m for m in names if _belongs(m, "fd") or _belongs(m, "fid")]
    return next(iter([*frechet, *names]), None)


def _meaning(metric: str) -> Meaning | None:
    return next((m for m in _MEANINGS if _belongs(metric, m.name)), None)


def _belongs(metric: str, family: str) -> bool:
    return metric == family or metric.startswith(f"{family}_")
