"""How far solvers end from the exact flow against network evaluations (NFE): ours and others'.

    python benchmarks/solvers.py [--samples 1000] [--nfe 2 4 6 8 10 20 50 100] [--grid uniform]

The field is the exact velocity of flows to mixtures of Gaussians: 8 narrow modes on a circle, and
10 flat anisotropic ones in 64 dimensions (`mixture.py`). Everything in double precision as far as
a project allows. Two distances:

- `rms`, for solvers without noise: sqrt(mean |x_solver(x0) - x_exact(x0)|^2) over the same x0,
  with the exact flow map from a solve of order 8. It bounds the 2-Wasserstein distance from above,
  and is sharp where errors are small.
- `w2`, for all: the exact 2-Wasserstein distance between the two sets of end points, x_solver(x0)
  and x_exact(x0), at most `rms`. A solver that adds noise forgets x0, so it starts from other x0,
  and its samples come about as near as two independent sets of exact ones: the floor beside them.

Other projects appear as they come and, where they can be told to, on our times. "bare" is ours
without the safe end.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from draw_solvers import draw
from measure import record
from mixture import MixtureFlow, circle, sheets
from peers import AdaptivePeer, Model, Peer, installed
from torch import Tensor

import flowmatch as fm
from flowmatch.metrics import wasserstein2
from flowmatch.solvers import AnySolver, FixedStep, GridSolver, Solver, parse_grid

ROOT = Path(__file__).parents[1]
PROBLEMS = {"2-D, 8 modes": circle, "64-D, 10 modes": sheets}
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


class Entry(NamedTuple):
    """One solver with one number of steps, or one tolerance."""

    name: str
    integrate: Callable[[Counted, Tensor], Tensor]
    stochastic: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--nfe", type=int, nargs="+", default=[2, 4, 6, 8, 10, 20, 50, 100])
    parser.add_argument("--grid", default="uniform", help="our time grid, e.g. shifted:3 or edm:7")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/solvers.jsonl")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/solvers-mixture.png")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of the other projects
    torch.set_grad_enabled(False)

    fixed, adaptive, missing = installed()
    for name in missing:
        print(f"skipped, not installed: {name}")
    fixed = [peer for peer in fixed if peer.project in ("torchdiffeq", "diffusers")]
    adaptive = [peer for peer in adaptive if peer.project == "torchdiffeq"]
    entries = [*ours(args.nfe, args.grid), *theirs(args.nfe, fixed, adaptive, args.grid)]
    results = {}
    for problem, make in PROBLEMS.items():
        results[problem] = result = measure(make(), entries, args.samples)
        print(f"\n{problem}: rms distance from the exact flow map, by NFE")
        show(result["rms"], args.nfe)
        floor = result["w2_floor"]
        print(f"\n{problem}: W2 to exact samples, by NFE; floor of those with noise: {floor:.3f}")
        show(result["w2"], args.nfe)
        facts = {"problem": problem, "samples": args.samples, "grid": args.grid, **result}
        record({**facts, "skipped": missing}, args.out)
    draw(results, args.picture)


def ours(nfe: Sequence[int], grid: str) -> list[Entry]:
    """All our solvers, with at most so many evaluations."""
    found: list[Entry] = []
    for kind in get_args(AnySolver):
        if issubclass(kind, GridSolver):
            counts = {(n - kind.extra) // kind.stages for n in nfe} - {0}
            for steps in sorted(counts):
                solver = kind(steps=steps, grid=parse_grid(grid))
                found.append(_our_entry(kind.kind, solver))
                if issubclass(kind, FixedStep) and kind.stages > 1:
                    found.append(_our_entry(f"{kind.kind}, bare", replace(solver, safe_end=False)))
        else:
            found += [_our_entry(kind.kind, kind(rtol=e, atol=e)) for e in TOLERANCES]
    return found


def _our_entry(name: str, solver: Solver) -> Entry:
    def integrate(field: Counted, x0: Tensor) -> Tensor:
        return fm.sample(field, x0, solver, path=field.inner.path, seeds=range(len(x0)))

    return Entry(name, integrate, solver.stochastic)


def theirs(
    nfe: Sequence[int], fixed: list[Peer], adaptive: list[AdaptivePeer], grid: str
) -> list[Entry]:
    """The other projects' methods, with at most so many evaluations."""
    found: list[Entry] = []
    for peer in fixed:
        steps = {max((k for k in range(n + 1) if peer.calls(k) <= n), default=0) for n in nfe}
        for count in sorted(steps - {0}):
            found.append(_peer_entry(peer, parse_grid(grid).times(count)))
    return found + [_adaptive_entry(peer, e) for peer in adaptive for e in TOLERANCES]


def _peer_entry(peer: Peer, times: Sequence[float]) -> Entry:
    return Entry(peer.name, lambda f, x: peer.run(_model(f, peer.clock), x, times))


def _adaptive_entry(peer: AdaptivePeer, tolerance: float) -> Entry:
    return Entry(peer.name, lambda f, x: peer.run(_model(f, "t"), x, tolerance))


def _model(field: Callable[[Tensor, Tensor], Tensor], clock: str) -> Model:
    if clock == "t":
        return lambda x, t: field(x, t.expand(len(x)))
    return lambda x, t: -field(x.double(), (1 - t.double() / 1000).expand(len(x)))


class Counted:
    """The field of a mixture, counting its calls."""

    def __init__(self, inner: MixtureFlow) -> None:
        self.inner = inner
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.calls += 1
        return self.inner(x, t)


def measure(mixture: MixtureFlow, entries: list[Entry], samples: int) -> dict[str, Any]:
    """Both distances of each entry as `{name: {nfe: distance}}`, and the floor of `w2`."""
    dim = mixture.means.shape[1]
    x0 = fm.noise(range(samples), (dim,)).double()
    exact = mixture.exact(x0)
    other = fm.noise(range(samples), (dim,), stream=1).double()  # where solvers with noise start
    checked = (mixture.exact(x0, 1e-11) - exact).square().sum(1).mean().sqrt()
    assert checked < 1e-6, f"the exact flow map is off by {checked:.1g}"
    rms: dict[str, dict[int, float]] = {}
    w2: dict[str, dict[int, float]] = {}
    for name, integrate, stochastic in entries:
        field = Counted(mixture)
        x = integrate(field, other if stochastic else x0).double()
        if not bool(x.isfinite().all()):
            print(f"{name} with {field.calls} evaluations: not finite")
            continue
        w2.setdefault(name, {})[field.calls] = _short(wasserstein2(x, exact))
        if not stochastic:
            distance = float((x - exact).square().sum(1).mean().sqrt())
            rms.setdefault(name, {})[field.calls] = _short(distance)
    floors = [wasserstein2(mixture.draw(samples, i), exact) for i in range(8)]
    return {"rms": rms, "w2": w2, "w2_floor": _short(sum(floors) / len(floors))}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def show(table: dict[str, dict[int, float]], nfe: Sequence[int]) -> None:
    """Print one line a solver: the last of its distances that each NFE pays for."""
    print(f"{'':<36}" + "".join(f"{n:>10}" for n in nfe))
    for name, row in table.items():
        cells = []
        for limit, before in zip(nfe, [0, *nfe], strict=False):
            paid = [n for n in row if before < n <= limit]
            cells.append(f"{row[max(paid)]:>10.2g}" if paid else f"{'':>10}")
        beyond = "".join(f"  {n}: {d:.2g}" for n, d in sorted(row.items()) if n > max(nfe))
        print(f"{name:<36}" + "".join(cells) + beyond)


if __name__ == "__main__":
    main()
