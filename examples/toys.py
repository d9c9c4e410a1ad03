"""Train a small flow on each 2-D toy and draw data and samples side by side.

python examples/toys.py [--steps 3000] [--out toys.png]
"""

import argparse

import torch
from PIL import Image

import flowmatch as fm
from flowmatch.data.toy import TOYS
from flowmatch.pictures import scatter


def train(draw, steps: int) -> fm.Flow:
    """A flow from the standard normal to the density that `draw(n)` draws from."""
    flow = fm.Flow(fm.networks.MLP(dim=2, width=192))
    loss = fm.losses.FlowMatching(time=fm.times.LogitNormal())
    optimizer = torch.optim.Adam(flow.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(flow, draw(512)).backward()
        optimizer.step()
        schedule.step()
    return flow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", default="toys.png")
    args = parser.parse_args()

    torch.manual_seed(0)
    size = 256
    sheet = Image.new("RGB", (size * len(TOYS), 2 * size), "white")
    for column, (name, draw) in enumerate(TOYS.items()):
        flow = train(draw, args.steps)
        samples = fm.sample(flow, torch.randn(4000, 2), fm.solvers.Heun(steps=20))
        for row, points in enumerate((draw(4000), samples)):
            sheet.paste(scatter(points, size=size), (column * size, row * size))
        print(f"{name}: done")
    sheet.save(args.out)
    print(f"{args.out}: data above, samples below")


if __name__ == "__main__":
    main()
