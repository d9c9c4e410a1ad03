"""Conditions in the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from flowmatch.component import Component
from flowmatch.data.conditions import Values
from flowmatch.data.dataset import digest
from flowmatch.data.encoder import encoder_stamp
from flowmatch.data.texts import embedded


@dataclass(frozen=True, kw_only=True)
class ScalarColumn(Component):
    """A column of numbers.

    Args:
        column: its name; an empty cell is an absent value.
    """

    column: str
    kind: Literal["scalar"] = "scalar"


@dataclass(frozen=True, kw_only=True)
class VectorColumn(Component):
    """A column of lists of numbers, all of one length.

    Args:
        column: its name; an empty cell is an absent value.
    """

    column: str
    kind: Literal["vector"] = "vector"


@dataclass(frozen=True, kw_only=True)
class TextColumn(Component):
    """A column of texts, which a frozen encoder embeds.

    Args:
        column: its name; an empty cell is an absent text.
        encoder: a text encoder of the Hugging Face hub, or the folder of one; see `TextEncoder`.
        max_tokens: a text is cut after so many.
    """

    column: str
    encoder: str
    max_tokens: int = 77
    kind: Literal["text"] = "text"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


ColumnConfig = Annotated[
    ScalarColumn | VectorColumn | TextColumn, pydantic.Field(discriminator="kind")
]


_NUMBERS = ("int", "uint", "float", "double", "halffloat")
"""How the types of numbers in an arrow table begin."""


def read_columns(
    table: Any, columns: Mapping[str, ColumnConfig], origin: str, *, first: int | None = None
) -> dict[str, Values]:
    """The conditions of the rows of a table.

    Args:
        table: an arrow table.
        columns: by the name of the condition.
        origin: what to call the table in a message.
        first: of only the first so many rows.
    Raises:
        ValueError: a column is missing or of another type, or its texts cannot be embedded.
    """
    _check_there(table, columns, origin)
    return {name: _read(table, name, column, origin, first) for name, column in columns.items()}


def stamp_columns(table: Any, columns: Mapping[str, ColumnConfig], origin: str) -> dict[str, str]:
    """What the conditions of all rows of a table are, by name; no text is embedded for it.

    Of texts, the encoder and how many tokens it reads count too.

    Args:
        table, columns, origin: as of `read_columns`.
    Raises:
        ValueError: as `read_columns`.
    """
    _check_there(table, columns, origin)
    return {name: _stamp(table, name, column, origin) for name, column in columns.items()}


def _check_there(table: Any, columns: Mapping[str, ColumnConfig], origin: str) -> None:
    for name, config in columns.items():  # what costs nothing first
        if config.column not in table.column_names:
            raise ValueError(
                f"conditions.{name}.column is {config.column!r}, but {origin} has the columns"
                f" {', '.join(table.column_names)}; name one of them"
            )


def _read(table: Any, name: str, config: ColumnConfig, origin: str, first: int | None) -> Values:
    found = _cells(table, name, config, origin)
    if isinstance(found, Tensor):
        return found[:first]
    assert isinstance(config, TextColumn)
    return embedded(found, config.encoder, max_tokens=config.max_tokens, first=first)


def _stamp(table: Any, name: str, config: ColumnConfig, origin: str) -> str:
    found = _cells(table, name, config, origin)
    if isinstance(found, Tensor):
        return digest(found)
    assert isinstance(config, TextColumn)
    return digest(encoder_stamp(config.encoder), str(config.max_tokens), *found)


def _cells(table: Any, name: str, config: ColumnConfig, origin: str) -> Tensor | list[str | None]:
    """The numbers or the texts of a column, all of them."""
    cells = table.column(config.column)
    try:
        if isinstance(config, ScalarColumn):
            return _scalars(cells)
        if isinstance(config, VectorColumn):
            return _vectors(cells)
        return _texts(cells)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"column {config.column!r} of {origin} holds no {config.kind}s ({error}); name another"
            f" column in conditions.{name}, or another kind"
        ) from None


def _scalars(cells: Any) -> Tensor:
    """Numbers [N] float32, NaN where a cell is empty."""
    if not str(cells.type).startswith((*_NUMBERS, "bool")):
        raise TypeError(f"it is of type {cells.type}")
    return torch.tensor(_finite(cells.cast("double", safe=False).to_numpy()), dtype=torch.float32)


def _vectors(cells: Any) -> Tensor:
    """Lists of one length as [N, dim] float32, NaN where a cell is empty."""
    kind = cells.type
    listed = "list<" in str(kind) and str(kind.value_type).startswith(_NUMBERS)
    if not listed:
        raise TypeError(f"it is of type {kind}")
    full = ~np.concatenate([np.asarray(chunk.is_null()) for chunk in cells.chunks])
    lengths = np.concatenate([np.asarray(c.drop_null().value_lengths()) for c in cells.chunks])
    if len(found := np.unique(lengths)) != 1 or not found[0]:
        raise ValueError(f"its lists have the lengths {', '.join(map(str, found[:5])) or 'none'}")
    if any(chunk.flatten().null_count for chunk in cells.chunks):
        raise ValueError("some of its lists have empty entries")
    flat = [c.flatten().cast("double", safe=False).to_numpy() for c in cells.chunks]
    vectors = torch.full((len(full), int(found[0])), torch.nan)
    vectors[torch.from_numpy(full)] = torch.from_numpy(
        _finite(np.concatenate(flat)).reshape(-1, int(found[0])).astype(np.float32)
    )
    return vectors


def _texts(cells: Any) -> list[str | None]:
    if str(cells.type) not in ("string", "large_string"):
        raise TypeError(f"it is of type {cells.type}")
    texts: list[str | None] = cells.to_pylist()
    return texts


def _finite(values: np.ndarray) -> np.ndarray:
    """NaN says that a value is absent; infinite values nothing."""
    if np.isinf(values).any():
        raise ValueError("it has infinite values")
    return values
