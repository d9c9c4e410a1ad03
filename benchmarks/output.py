"""What writing samples costs: encoders of PNG, and the wait for files beside the sampling.

    python benchmarks/output.py [--images 5000] [--size 32] [--batch 100] [--rounds 5]

First the encoders: microseconds an image in one thread and in two (two are faster only where an
encoder lets other threads run), and bytes; torchvision's is deprecated. Then a job of so many
colour images, whose network stands for a fast device: it blurs its noise and sleeps a given time a
batch. "before" encodes and writes between the batches; "after" is ours, in the background. Seconds
are those that the sampling waits for its files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torchvision
from measure import alternate, ratio, record, show
from PIL import Image
from torch import Tensor

import flowmatch as fm
from flowmatch.generation import SampleJob
from flowmatch.generation.drawing import Drawer, Drawn, draw_all
from flowmatch.generation.images import ImageStore
from flowmatch.generation.writing import BackgroundWriter

Encoder = Callable[[Tensor], bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--milliseconds", type=float, default=20.0, help="of a batch on the device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/output.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # torchvision's encoder

    flow = fm.Flow(Blur(args.milliseconds / 1000), shape=(3, args.size, args.size)).eval()
    with tempfile.TemporaryDirectory() as folder:
        job = SampleJob(
            seeds=range(args.images),
            save_dir=Path(folder),
            solver=fm.solvers.Euler(steps=1),
            batch=args.batch,
        )
        drawer = Drawer(
            flow, job, device=torch.device("cpu"), precision=contextlib.nullcontext, weak=None
        )
        encoders = compare_encoders(drawer, args.rounds)
        waits: dict[str, list[float]] = {"before": [], "after": []}
        work = {
            "before": lambda: waits["before"].append(one_after_the_other(drawer)),
            "after": lambda: waits["after"].append(in_the_background(drawer)),
        }
        seconds = alternate(work, rounds=args.rounds)
    middle = {name: sorted(found[1:])[len(found) // 2 - 1] for name, found in waits.items()}
    print(f"{args.images:,} images of {args.size}x{args.size}, batches of {args.batch}:")
    for name, wait in middle.items():
        print(f"  {name:<7} {wait:7.3f} s waiting for files")
    whole = ratio(seconds["before"], seconds["after"])
    show("whole job, before / after", whole)
    record(
        {
            "images": args.images,
            "size": args.size,
            "batch": args.batch,
            "milliseconds_a_batch": args.milliseconds,
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "encoders": encoders,
            "waiting_seconds": {name: round(wait, 4) for name, wait in middle.items()},
            "before_over_after": whole,
        },
        args.out,
    )


def compare_encoders(drawer: Drawer, rounds: int) -> dict[str, dict[str, float]]:
    """Each encoder on one batch of images."""
    images = drawer.draw(drawer.job.seeds[:200], size=200).x
    encoders = {f"pillow {level}": pillow(level) for level in (1, 3, 6)}
    if hasattr(torchvision.io, "encode_png"):
        encoders |= {f"torchvision {level}": by_torchvision(level) for level in (1, 3, 6)}
    halves = images.tensor_split(2)
    found = {}
    with ThreadPoolExecutor(2) as pool:

        def many(encode: Encoder, part: Tensor) -> int:
            return sum(len(encode(image)) for image in part)

        one = {k: lambda e=e: many(e, images) for k, e in encoders.items()}
        two = {
            k: lambda e=e: list(pool.map(lambda part: many(e, part), halves))
            for k, e in encoders.items()
        }
        alone, together = alternate(one, rounds=rounds), alternate(two, rounds=rounds)
        for name, encode in encoders.items():
            found[name] = {
                "one_thread_us": round(min(alone[name]) / len(images) * 1e6, 1),
                "two_threads_us": round(min(together[name]) / len(images) * 1e6, 1),
                "bytes": round(many(encode, images) / len(images)),
            }
            f = found[name]
            print(
                f"{name:<14} {f['one_thread_us']:7.1f} us an image, in two threads"
                f" {f['two_threads_us']:7.1f}, {f['bytes']:,} bytes"
            )
    return found


def pillow(level: int) -> Encoder:
    def encode(image: Tensor) -> bytes:
        content = io.BytesIO()
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(content, "png", compress_level=level)
        return content.getvalue()

    return encode


def by_torchvision(level: int) -> Encoder:
    return lambda image: torchvision.io.encode_png(image, level).numpy().tobytes()


def one_after_the_other(drawer: Drawer) -> float:
    """Draw and write in one thread; seconds for the writing."""
    folder, waited = drawer.job.save_dir, 0.0
    for drawn in draw_all(drawer, drawer.job.seeds, drawer.job.batch):
        began = time.perf_counter()
        for seed, image in zip(drawn.seeds, drawn.x.permute(0, 2, 3, 1).numpy(), strict=True):
            partial = folder / f"{seed:05d}.partial"
            Image.fromarray(image).save(partial, "png")
            os.replace(partial, folder / f"{seed:05d}.png")
        waited += time.perf_counter() - began
    return waited


def in_the_background(drawer: Drawer) -> float:
    """Draw and write as the command does; seconds that the drawing waited."""
    store = ImageStore(drawer.job)
    writer: BackgroundWriter[Drawn]
    with BackgroundWriter(store.write) as writer:
        for drawn in draw_all(drawer, drawer.job.seeds, drawer.job.batch):
            for piece in store.pieces(drawn):
                writer.put(piece)
    return writer.waited


class Blur(torch.nn.Module):
    """A velocity that leads to blurred noise, which compresses about as photographs do.

    Args:
        seconds: how long a batch takes, without the CPU's doing.
    """

    num_classes = None

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        time.sleep(self.seconds)
        coarse = torch.nn.functional.avg_pool2d(x, 4)
        smooth = torch.nn.functional.interpolate(coarse, size=x.shape[2:], mode="bilinear")
        return 1.5 * smooth + 0.03 * x - x


if __name__ == "__main__":
    main()
