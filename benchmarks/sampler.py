"""The cost of our sampling loop over the bare network, called as many times.

    python benchmarks/sampler.py [--batch 16] [--steps 20] [--rounds 30]

First with a network of a million parameters, as a ratio; then with a field that does nothing, which
leaves the loop itself: microseconds a step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measure import alternate, ratio, record, show

import flowmatch as fm
from flowmatch.networks import UNetConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampler.jsonl"))
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (1, 28, 28)
    config = UNetConfig(
        channels=32, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(7,), scale_shift=True
    )
    network = config.build(shape).eval().to(device)
    flow = fm.Flow(network, shape=shape)
    x0 = fm.noise(range(args.batch), shape).to(device)
    t = torch.rand(args.batch, device=device)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(args.steps):
            network(x0, t)

    solver = fm.solvers.Euler(steps=args.steps)
    seconds = alternate(
        {"ours": lambda: fm.sample(flow, x0, solver), "bare": bare}, rounds=args.rounds
    )
    overhead = ratio(seconds["ours"], seconds["bare"])
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, batch {args.batch}")
    show("sampling / the network called as many times", overhead)

    velocity = torch.zeros_like(x0)
    identity = fm.Flow(Constant(velocity), shape=shape)
    result: dict[str, object] = {"ours_over_network": overhead, "batch": args.batch}
    for kind in (fm.solvers.Euler, fm.solvers.Heun):
        loop = kind(steps=1000)

        @torch.no_grad()
        def empty(calls: int = loop.nfe) -> None:
            for _ in range(calls):
                identity.network(x0, t, None)

        seconds = alternate(
            {"ours": lambda loop=loop: fm.sample(identity, x0, loop), "empty": empty}, rounds=10
        )
        pairs = zip(seconds["ours"], seconds["empty"], strict=True)
        each = sorted((a - b) / 1000 * 1e6 for a, b in pairs)
        print(f"{kind.kind}: {each[len(each) // 2]:.1f} microseconds a step outside the network")
        result[f"{kind.kind}_microseconds_a_step"] = round(each[len(each) // 2], 2)
    record(result, args.out)


class Constant(torch.nn.Module):
    """A network that costs nothing."""

    num_classes = None

    def __init__(self, velocity: torch.Tensor) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return self.velocity


if __name__ == "__main__":
    main()
