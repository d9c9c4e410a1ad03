"""Optimizers: what turns gradients into updates.

An optimizer's config builds a `torch.optim.Optimizer` over a module, with all that it knows in
`state_dict()`, as plain data. To add one, write its config in a file of its own and name it in
`OptimizerConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from flowmatch.training.adamw import AdamW
from flowmatch.training.muon import Muon

__all__ = ["AdamW", "Muon", "OptimizerConfig"]


def _adamw_unless_said(node: Any) -> Any:
    """A mapping without a kind is an AdamW's."""
    if isinstance(node, Mapping) and "kind" not in node:
        return {"kind": "adamw", **node}
    return node


OptimizerConfig = Annotated[
    AdamW | Muon, Field(discriminator="kind"), BeforeValidator(_adamw_unless_said)
]
