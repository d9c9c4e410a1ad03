"""How fast each way to read the training data is, and how long a fast device would wait for it.

    python benchmarks/data.py [--images 6000] [--size 64] [--batch 256] [--workers 4] [--rounds 3]

The same images (JPEG, of their final size) are read from memory, from a folder, from parquet files
at random, and streamed: parquet files, shards on a local disk, and the files of a hub data set as
the hub's are read, through a file system that is not local, though here from disk. "one worker a
batch" streams the parquet files without dealing lanes to workers: then each worker opens every row
group. "50 ms away" are the shards in a store where every reading takes that much longer, with and
without pieces being opened ahead of time.

Images a second are those of a consumer that does nothing else; the share of waiting is that of one
that takes batches at a given rate and leaves the cores to the workers meanwhile. Other work on the
machine spoils both, but hardly the CPU time an image takes, in all processes together, nor the
number of times that a piece (a row group, 64 neighbours of a shard) is opened in an epoch.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from measure import record
from PIL import Image

from flowmatch.data import Batch, Dataset, Hub, ImageFolder, Shards, StreamedImages, Streaming
from flowmatch.data import stream as read
from flowmatch.data.hubfiles import find_files
from flowmatch.data.packing import Files, pack
from flowmatch.data.parquet import ParquetSource
from flowmatch.data.pieces import Opened
from flowmatch.data.tarsource import TarSource, read_index
from flowmatch.data.transforms import ShortSide
from flowmatch.training.draws import Split, requests

ROW_GROUP = 100  # as `datasets` writes images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=10_000, help="images/s of the fast device")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLOWMATCH_CACHE"] = os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        paths = make(Path(folder), args.images, args.size, Streaming(lanes=args.lanes))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in paths}
        for _ in range(args.rounds):  # in turns, for a machine whose speed drifts
            for name, (dataset, dealt) in paths.items():
                found[name].append(measure(dataset, args, dealt=dealt))
        openings = {
            name: count_openings(dataset, args, dealt=dealt)
            for name, (dataset, dealt) in paths.items()
        }
    print(f"{args.images:,} images of {args.size}x{args.size}, {args.workers} workers")
    middle = {}
    for name, rounds in found.items():
        rates = [r["images_per_second"] for r in rounds]
        middle[name] = {
            "images_per_second": round(statistics.median(rates)),
            "lowest": round(min(rates)),
            "highest": round(max(rates)),
            "waits": round(statistics.median(r["waits"] for r in rounds), 3),
            "cpu_us": round(statistics.median(r["cpu_us"] for r in rounds)),
            "openings": openings[name],
        }
        m = middle[name]
        print(
            f"{name:<28} {m['images_per_second']:>7,} images/s ({m['lowest']:,} to"
            f" {m['highest']:,}), {m['cpu_us']:,} us of CPU an image; at {args.rate:,.0f} images/s"
            f" the device waits {m['waits']:.1%}"
            + (f"; a piece is opened {m['openings']} times an epoch" if m["openings"] else "")
        )
    record(
        {
            "images": args.images,
            "size": args.size,
            "batch": args.batch,
            "lanes": args.lanes,
            "workers": args.workers,
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "rate": args.rate,
            "paths": middle,
        },
        args.out,
    )


def make(
    folder: Path, count: int, size: int, streaming: Streaming
) -> dict[str, tuple[Dataset, bool]]:
    """The images in every form; with each, whether lanes are dealt to workers."""
    images = [jpeg(size, key) for key in range(count)]
    for key, content in enumerate(images):
        path = folder / f"images/{key % 10}/{key:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    rows = pa.table(
        {
            "image": [{"bytes": content, "path": None} for content in images],
            "label": [key % 10 for key in range(count)],
        }
    )
    (folder / "rows").mkdir()
    for number, start in enumerate(range(0, count, max(count // 4, 1))):
        part = rows.slice(start, max(count // 4, 1))
        pq.write_table(part, folder / f"rows/train-{number}.parquet", row_group_size=ROW_GROUP)
    files = ImageFolder(root=str(folder / "images"), image_size=size, memory_gib=0)
    pack(Files(*files.source("train")), folder / "shards", shard_size=1000, workers=2)
    table = Hub(
        path=str(folder / "rows"),
        label_column="label",
        num_classes=10,
        image_size=size,
        memory_gib=0,
        stream=streaming,
    )
    shards = Shards(root=str(folder / "shards"), image_size=size, memory_gib=0, stream=streaming)
    return {
        "memory": (ImageFolder(root=str(folder / "images"), image_size=size).build(), True),
        "folder": (files.build(), True),
        "parquet, at random": (replace(table, stream=None).build(), True),
        "parquet, streamed": (table.build(), True),
        "parquet, one worker a batch": (table.build(), False),
        "shards, streamed": (shards.build(), True),
        "shards 50 ms away": (distant(shards, foreseen=True), True),
        "shards 50 ms away, unforeseen": (distant(shards, foreseen=False), True),
        "hub, streamed from disk": (hub_from_disk(folder / "rows", size, streaming), True),
    }


class Slow(LocalFileSystem):
    """The disk, as if it were 50 ms away."""

    protocol = "slow"

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        time.sleep(0.05)
        return super().cat_file(path, start, end)


class Unforeseen(TarSource):
    """Shards of which no piece is opened before it is needed."""

    def expect(self, indices: torch.Tensor) -> None:
        super().expect(indices[:0])


def distant(shards: Shards, *, foreseen: bool) -> Dataset:
    """The same shards in a slow store."""
    index = read_index(LocalFileSystem(), shards.root)
    source = (TarSource if foreseen else Unforeseen)(Slow(), index, labelled=True)
    return StreamedImages(
        source,
        ShortSide(size=shards.image_size),
        channels=3,
        num_classes=10,
        streaming=shards.stream,
        random_access=False,
    )


def hub_from_disk(rows: Path, size: int, streaming: Streaming) -> Dataset:
    """Parquet files read as those of the hub are, by a file system that is not the local one."""
    fs = DirFileSystem(path=str(rows), fs=find_files(str(rows), None, "train", alone=True)[0])
    files = sorted(fs.glob("train*.parquet"))
    source = ParquetSource(fs, files, image=None, label="label", origin=str(rows))
    return StreamedImages(
        source,
        ShortSide(size=size),
        channels=3,
        num_classes=10,
        streaming=streaming,
        random_access=False,
    )


def jpeg(size: int, key: int) -> bytes:
    """A smooth random picture with some grain, as large as a photograph of that size."""
    noise = np.random.default_rng(key)
    base = Image.fromarray(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size))
    pixels = np.asarray(base) + noise.normal(0, 8, (size, size, 3))
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "jpeg", quality=90)
    return content.getvalue()


def batches(
    dataset: Dataset, args: argparse.Namespace, *, dealt: bool, count: int | None = None
) -> Generator[Batch]:
    """The first batches of a training; None: without end."""
    order = dataset.order(0, batch=args.batch, processes=1)
    wanted = requests(order, Split(args.batch, 1, 1, 0), seed=0, step=0, images=0)
    lanes = order.lanes(0, args.batch) if dealt else None
    return read(
        dataset,
        itertools.islice(wanted, count),
        workers=args.workers,
        device="cpu",
        lanes=None if lanes is None else [lanes],
    )


def measure(dataset: Dataset, args: argparse.Namespace, *, dealt: bool) -> dict[str, float]:
    """Images a second at full speed, and the share of waiting at a given rate, over an epoch each.

    What the workers have read ahead when the clock starts is not counted, but for its CPU time.
    """
    before = sum(os.times()[:4])
    made = batches(dataset, args, dealt=dealt)
    ahead = 2 * args.workers + 1
    count = max(args.images // args.batch, 2)
    for _ in itertools.islice(made, ahead):
        pass
    began = time.perf_counter()
    for _ in itertools.islice(made, count):
        pass
    seconds = time.perf_counter() - began
    waited, since = 0.0, time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        next(made)
        waited += time.perf_counter() - asked
        time.sleep(args.batch / args.rate)
    whole = time.perf_counter() - since
    made.close()  # the workers' time counts when they have ended
    read_images = (ahead + 2 * count) * args.batch
    return {
        "images_per_second": count * args.batch / seconds,
        "waits": waited / whole,
        "cpu_us": (sum(os.times()[:4]) - before) / read_images * 1e6,
    }


def count_openings(dataset: Dataset, args: argparse.Namespace, *, dealt: bool) -> float | None:
    """How often a piece is opened in the first epoch, by whatever process; None without pieces."""
    if not isinstance(dataset, StreamedImages):
        return None
    log, source = Path(tempfile.mkstemp()[1]), dataset.source

    def logged(piece: int) -> Opened:
        with log.open("ab") as file:
            file.write(b".")
        return type(source).open(source, piece)

    source.open = logged
    for _ in batches(dataset, args, dealt=dealt, count=args.images // args.batch):
        pass
    del source.open
    found = len(log.read_bytes()) / len(source.counts)
    log.unlink()
    return round(found, 2)


if __name__ == "__main__":
    main()
