"""Lists of numbers as text: which samples, which classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

_MOST = 100_000_000
"""A longer range is a mistake, and would fill the memory before anything else could say so."""
_PART = re.compile(r"(\d+)(?:-(\d+))?")


def parse_seeds(text: str | None, count: int | None) -> Sequence[int]:
    """The samples that were asked for, in increasing order.

    Args:
        text: "5,17,100-131", both ends included, or None.
        count: how many: the samples 0 to count - 1, or, beside a text, what that must amount to.
    Raises:
        ValueError: neither is given, they disagree, or the text cannot be read or repeats itself.
    """
    if count is not None and count < 1:
        raise ValueError(f"--n_samples must be at least 1, got {count}")
    if text is None and count is None:
        raise ValueError("say how many samples, --n_samples N, or which: --seeds 5,17,100-131")
    if text is None:
        return range(count or 0)
    seeds = sorted(_numbers(text, "--seeds", "e.g. 5,17,100-131"))
    if count is not None and count != len(seeds):
        raise ValueError(
            f"--n_samples {count} and --seeds {text} disagree: the seeds are {len(seeds):,}"
            " samples; leave out --n_samples"
        )
    return seeds


def parse_classes(text: str, num_classes: int | None) -> tuple[int, ...]:
    """The classes to deal in turn: "all", or those of a list such as "0,3,7", in its order.

    Raises:
        ValueError: the model has no classes, or the text cannot be read or repeats itself.
    """
    if num_classes is None:
        raise ValueError("this model takes no class label; leave out --classes")
    if text == "all":
        return tuple(range(num_classes))
    return tuple(_numbers(text, "--classes", "e.g. 0,3,7, or all"))


def compress(numbers: Iterable[int]) -> str:
    """Increasing numbers as text that `parse_seeds` reads: "5,17,100-131"."""
    numbers = list(numbers)
    if not numbers:
        return ""
    cuts = [i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    runs = [(numbers[a], numbers[b - 1]) for a, b in pairwise([0, *cuts, len(numbers)])]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _numbers(text: str, flag: str, example: str) -> list[int]:
    found: dict[int, None] = {}
    for word in text.split(","):
        part = _PART.fullmatch(word.strip())
        if part is None:
            raise ValueError(
                f"{flag} cannot read {word.strip()!r} in {text!r}; write numbers and ranges,"
                f" {example}"
            )
        first = int(part[1])
        last = int(part[2]) if part[2] else first
        if last < first:
            raise ValueError(f"{flag} has the range {word.strip()} reversed; write {last}-{first}")
        if last - first >= _MOST:
            raise ValueError(
                f"{flag} names over {_MOST:,} numbers in {word.strip()}; ask for fewer"
            )
        for number in range(first, last + 1):
            if number in found:
                raise ValueError(f"{flag} names {number} twice in {text!r}; name each once")
            found[number] = None
    return list(found)
