"""torch.compile for training: of the whole network, or of the blocks that it repeats."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from torch import nn

from flowmatch.compiler import prepare_compiler
from flowmatch.networks import dropouts_of


def _yaml_off(value: Any) -> Any:
    """`off` without quotes is false in YAML."""
    return "off" if value is False else value


Compile = Annotated[Literal["auto", "off", "network", "blocks"], BeforeValidator(_yaml_off)]

_FEWEST = 4
"""Equal blocks from which compiling one of them for all pays."""


def compile_in_place(network: nn.Module, how: Compile, device: torch.device) -> Compile:
    """Compile a network where it stands; its weights and their names stay the same.

    Compiled for itself, a block that occurs many times is compiled once, which takes a fraction of
    the time and gives most of the speed; what lies between the blocks is not.

    Args:
        network: moved to its device.
        how: "network", "blocks", "off"; "auto" is "off" on a CPU or MPS, where compiling takes
            minutes, and on a GPU "blocks" where the network has some, else "network".
        device: where it is.
    Returns:
        what was done: "off", "network" or "blocks".
    Raises:
        ValueError: a network without equal blocks, or no compiler on this machine.
    """
    blocks = repeated_blocks(network)
    if how == "auto":
        on_gpu = device.type == "cuda"
        how = ("blocks" if blocks else "network") if on_gpu else "off"
    if how == "off":
        return how
    prepare_compiler(f"train.compile={how}")
    for dropout in dropouts_of(network):  # else compiled anew for the key of each step
        dropout.masked = torch.compiler.disable(dropout.masked)  # type: ignore[method-assign,no-untyped-call]
    if how == "network":
        network.compile(dynamic=False)
        return how
    if not blocks:
        raise ValueError(
            f"train.compile=blocks suits networks that repeat a block {_FEWEST} times or more, such"
            " as a dit; use train.compile=network"
        )
    for block in blocks:
        block.compile(dynamic=False)
    return how


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The longest row of equal blocks in a network: of one class, with weights of equal shapes."""
    rows = [[*row] for row in network.modules() if isinstance(row, nn.ModuleList)]
    equal = [row for row in rows if len(row) >= _FEWEST and len({_kind(b) for b in row}) == 1]
    return max(equal, key=len, default=[])


def _kind(block: nn.Module) -> tuple[type, tuple[tuple[str, torch.Size], ...]]:
    return type(block), tuple((name, p.shape) for name, p in block.named_parameters())
