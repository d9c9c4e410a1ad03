"""The JSON file of a table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flowmatch.config import flat
from flowmatch.evaluation.protocol import sentence


class Document:
    """The table of one protocol as a JSON file, whole after every row.

    A file of the same protocol keeps its rows: a sweep that was killed goes on, another solver
    joins the table.

    Args:
        path: the file; None keeps it in memory.
        protocol: what all rows have in common.
        unsaid: what a file means that lacks a key of the protocol, by the key with its dots.
    Raises:
        ValueError: the file holds something else.
    """

    def __init__(
        self,
        path: Path | None,
        protocol: dict[str, Any],
        *,
        unsaid: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self.content: dict[str, Any] = {"protocol": protocol, "rows": []}
        if path is None or not path.exists():
            return
        found = read_document(path)
        before = {**unsaid, **flat(found["protocol"])}
        now = flat(json.loads(json.dumps(protocol)))
        keys = (before.keys() | now.keys()) - {"model.name"}
        other = sorted(k for k in keys if before.get(k) != now.get(k))
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
    if path.is_dir():
        raise ValueError(f"{path} is a folder; an evaluation is a JSON file")
    if not path.is_file():
        raise ValueError(f"there is no evaluation {path}")
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or not content.keys() >= {"protocol", "rows"}:
        raise ValueError(f"{path} is no evaluation: it has no protocol and rows")
    if not all(isinstance(r, dict) and "metrics" in r for r in content["rows"]):
        raise ValueError(f"{path} is no evaluation: a row of it has no metrics")
    return content


def _plain(node: Any) -> Any:
    """JSON knows no NaN: numbers that are none become null."""
    if isinstance(node, dict):
        return {k: _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
