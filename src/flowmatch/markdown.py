"""Tables in Markdown, so that what is printed can be pasted where it is needed."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells, the first of them the heads, with columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    head, *lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([head, rule, *lines])
