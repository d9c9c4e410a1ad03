"""The cost of our sampling loop over the bare network, and beside the loops of other projects.

    python benchmarks/sampler.py [--batch 16] [--steps 20] [--rounds 30]

First with a network of a million parameters: sampling against the network called as many times.
Then with a network that costs nothing and returns a constant, which leaves the loop itself: the
microseconds that a step takes outside the network, for all our solvers on a grid and for the
methods of `peers.py`, and how many times ours that is. All run in turns, in one process, without
gradients, over the same number of equal steps on the same batch, with the same module as the field.
Ours is `fm.sample`, everything included; the others call the module through the thinnest wrapper
that they accept, and that gives it what it takes, a time for each sample (`t.expand(B)`). Rows "in
a Flow" are ours again with the conversion of predictions around the network, which the others leave
to their users. Adaptive methods follow x' = x in double precision to a tolerance of 1e-10, as
microseconds for each network call, since they choose their own steps.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from measure import alternate, ratio, record, show
from peers import AdaptivePeer, Peer, installed
from torch import Tensor, nn

import flowmatch as fm
from flowmatch.networks import UNetConfig
from flowmatch.solvers import AnySolver, Euler, GridSolver, Heun

TOLERANCE = 1e-10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="with the network")
    parser.add_argument("--loop-steps", type=int, default=200, help="without one")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampler.jsonl"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of the other projects
    torch.set_grad_enabled(False)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {"batch": args.batch, "steps": args.steps}
    result["ours_over_network"] = over_the_network(args.batch, args.steps, args.rounds, device)
    fixed, adaptive, missing = installed()
    fixed = [peer for peer in fixed if "our times" not in peer.method]  # the same loop again
    for name in missing:
        print(f"skipped, not installed: {name}")
    for shape in ((4, 2), (args.batch, 1, 28, 28)):
        name = "x".join(map(str, shape))
        x0 = torch.randn(shape, device=device)
        print(f"\n{name}: microseconds a step outside the network, and how many times ours")
        result[f"steps {name}"] = fixed_steps(x0, fixed, args.loop_steps, args.rounds)
        print(f"\n{name}: adaptive methods, microseconds a network call outside it")
        result[f"adaptive {name}"] = adaptive_steps(x0.double(), adaptive, args.rounds)
    record({**result, "loop_steps": args.loop_steps, "skipped": missing}, args.out)


def over_the_network(batch: int, steps: int, rounds: int, device: str) -> dict[str, float]:
    """Time of sampling over that of calling a network of a million parameters as often."""
    shape = (1, 28, 28)
    config = UNetConfig(
        channels=32, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(7,), scale_shift=True
    )
    network = config.build(shape).eval().to(device)
    flow = fm.Flow(network, shape=shape)
    x0 = fm.noise(range(batch), shape).to(device)
    t = torch.rand(batch, device=device)
    solver = fm.solvers.Euler(steps=steps)
    work = {"ours": lambda: fm.sample(flow, x0, solver), "bare": calls_of(network, x0, t, steps)}
    seconds = alternate(work, rounds=rounds)
    overhead = ratio(seconds["ours"], seconds["bare"])
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, batch {batch}")
    show("sampling / the network called as many times", overhead)
    return overhead


def fixed_steps(x0: Tensor, peers: list[Peer], steps: int, rounds: int) -> dict[str, Any]:
    """Overheads of a step with a constant velocity."""
    network = Constant(torch.zeros_like(x0))
    flow = fm.Flow(network, shape=tuple(x0.shape[1:]))
    path = flow.path
    t = torch.rand(len(x0), device=x0.device)
    times = [i / steps for i in range(steps + 1)]
    work: dict[str, Callable[[], object]] = {"bare": calls_of(network, x0, t, 4 * steps)}
    calls: dict[str, int] = {}
    for kind in get_args(AnySolver):
        if issubclass(kind, GridSolver):
            solver = kind(steps=steps)
            known = path if kind.needs_path else None
            work[kind.kind] = lambda s=solver, p=known: fm.sample(network, x0, s, path=p)
            calls[kind.kind] = solver.nfe
            if kind in (Euler, Heun):
                name = f"{kind.kind} in a Flow"
                work[name] = lambda solver=solver: fm.sample(flow, x0, solver)
                calls[name] = solver.nfe
    model = expanding(network)
    for peer in peers:
        work[peer.name] = lambda peer=peer: peer.run(model, x0, times)
        calls[peer.name] = peer.calls(steps)
    seconds = alternate(work, rounds=rounds, warm=True)
    outside = {
        name: [
            (all_ - bare * calls[name] / (4 * steps)) / steps * 1e6
            for all_, bare in zip(seconds[name], seconds["bare"], strict=True)
        ]
        for name in calls
    }
    return compared(outside, {peer.name: peer.ours for peer in peers})


def adaptive_steps(x0: Tensor, peers: list[AdaptivePeer], rounds: int) -> dict[str, Any]:
    """Overheads of a network call with adaptive steps along x' = x."""
    network = Itself()
    t = torch.rand(len(x0), device=x0.device)
    kinds = {peer.ours for peer in peers} | {"dopri5"}
    work: dict[str, Callable[[], object]] = {"bare": calls_of(network, x0, t, 1000)}
    for kind in sorted(kinds):
        solver = fm.solvers.by_name(kind)(rtol=TOLERANCE, atol=TOLERANCE, safe_end=False)
        work[kind] = lambda solver=solver: fm.sample(network, x0, solver)
    model = expanding(network)
    for peer in peers:
        work[peer.name] = lambda peer=peer: peer.run(model, x0, TOLERANCE)
    calls = {}
    for name, do in work.items():
        network.calls = 0
        do()
        calls[name] = network.calls
    seconds = alternate(work, rounds=rounds, warm=True)
    outside = {
        name: [
            (all_ / calls[name] - bare / calls["bare"]) * 1e6
            for all_, bare in zip(seconds[name], seconds["bare"], strict=True)
        ]
        for name in work
        if name != "bare"
    }
    table = compared(outside, {peer.name: peer.ours for peer in peers})
    for name, row in table.items():
        row["calls"] = calls[name]
    return table


def compared(outside: dict[str, list[float]], ours: dict[str, str]) -> dict[str, Any]:
    """Print and return microseconds by name, and for those in `ours` the ratio to that row."""
    table: dict[str, Any] = {}
    for name, microseconds in outside.items():
        row: dict[str, Any] = {"microseconds": round(statistics.median(microseconds), 2)}
        line = f"  {name:<34} {row['microseconds']:8.1f}"
        if name in ours:
            row["ours"] = ours[name]
            row["times_ours"] = ratio(microseconds, outside[ours[name]])
            low, median, high = (row["times_ours"][k] for k in ("low", "median", "high"))
            line += f"   {median:6.2f} times {ours[name]} ({low:.2f} to {high:.2f})"
        print(line)
        table[name] = row
    return table


def calls_of(network: nn.Module, x: Tensor, t: Tensor, count: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(count):
            network(x, t, None)

    return call


def expanding(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The network for solvers that give one time for the batch."""
    return lambda x, t: network(x, t.expand(x.shape[0]), None)


class Constant(nn.Module):
    """A network that costs nothing."""

    num_classes = None

    def __init__(self, velocity: Tensor) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.velocity


class Itself(nn.Module):
    """The field x' = x, which costs nothing either; it counts its calls."""

    num_classes = None

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.calls += 1
        return x


if __name__ == "__main__":
    main()
