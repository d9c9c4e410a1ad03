"""Images that cannot be used: which, why, and what to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

NAMED_AT_MOST = 5


class ImageError(ValueError):
    """An image that cannot be used.

    Args:
        name: the file, or the row and its table.
        detail: what is the matter with this one, e.g. "0 bytes".
        problem: completes "the image is ..."; shared by all images with the same trouble.
        remedy: what the user can do.
    """

    def __init__(self, name: str, detail: str, *, problem: str, remedy: str) -> None:
        super().__init__(f"{name} is {problem} ({detail}); {remedy}")
        self.name = name
        self.detail = detail
        self.problem = problem
        self.remedy = remedy


class UnreadableImage(ImageError):
    """An image that cannot be decoded: empty, cut short, or no image at all."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, detail, problem="unreadable", remedy="replace or delete it")


def summary(errors: Iterable[ImageError]) -> str:
    """One sentence for many unusable images: a few of each trouble by name, and how many more."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for error in errors:
        groups[error.problem, error.remedy].append(f"{error.name} ({error.detail})")
    parts = [
        f"{count_of(names, 'image')} {'is' if len(names) == 1 else 'are'} {problem}:"
        f" {listing(names)}; {remedy}"
        for (problem, remedy), names in groups.items()
    ]
    return "; ".join(parts)


def listing(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    shown = ", ".join(names[:NAMED_AT_MOST])
    more = len(names) - NAMED_AT_MOST
    return f"{shown} and {more:,} more" if more > 0 else shown


def count_of(things: Sequence[object], noun: str) -> str:
    """E.g. "1 image", "1,200 images"."""
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"
