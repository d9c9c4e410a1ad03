"""The base of everything that a config file can name."""

from __future__ import annotations

from typing import Any, ClassVar


class Component:
    """Base of the frozen dataclasses that a YAML node constructs (a path, a solver, a loss ...).

    A component is a plain dataclass with a `kind`; this base only tells pydantic to refuse keys
    that the dataclass does not have, so that a typing mistake in a config never passes in silence,
    and numbers that are NaN or infinite.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}
