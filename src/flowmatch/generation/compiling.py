"""torch.compile for sampling: of the network, or of a whole integration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flowmatch.compiler import prepare_compiler
from flowmatch.flow import Cond, Flow
from flowmatch.solvers import FixedStep, Solver

Compile = Literal["off", "step", "grid"]

Integrate = Callable[[Tensor, Cond | None], Tensor]
"""`(x0 [B, *D], cond) -> x1 [B, *D]`."""


def check_compile(what: Compile, solver: Solver) -> None:
    """Refuse what cannot be compiled.

    Raises:
        ValueError: no such choice, a solver whose integration is no fixed sequence of calls, or no
            C++ compiler on a machine without a GPU.
    """
    if what not in get_args(Compile):
        raise ValueError(f"--compile is one of {', '.join(get_args(Compile))}, got {what!r}")
    if what == "grid" and not isinstance(solver, FixedStep):
        kind = getattr(solver, "kind", type(solver).__name__)
        raise ValueError(
            f"--compile grid needs a one-step solver such as euler or heun, not {kind}; use"
            " --compile step"
        )
    if what != "off":
        prepare_compiler("--compile")


def compile_network(flow: Flow) -> Flow:
    """The same flow with its network compiled for each size of batch; the weights are shared."""
    network = CompiledNetwork(flow.network)
    return Flow(network, path=flow.path, predict=flow.predict, shape=flow.shape).eval()


def compile_integration(integrate: Integrate) -> Integrate:
    """An integration as one graph."""
    return torch.compile(integrate, dynamic=False)


class CompiledNetwork(nn.Module):
    """A network that runs compiled; on a GPU as a CUDA graph, whose launches cost nothing.

    Args:
        network: `(x [B, *D], t [B], cond) -> [B, *D]`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.num_classes: int | None = getattr(network, "num_classes", None)
        if (nulls := getattr(network, "nulls", None)) is not None:
            self.nulls: Mapping[str, float] = nulls
        self._graphs = torch.cuda.is_available()
        mode = "reduce-overhead" if self._graphs else "default"
        self.network = torch.compile(network, mode=mode, dynamic=False)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        out: Tensor = self.network(x, t, cond)
        return out.clone() if self._graphs else out  # the next call overwrites a graph's output
