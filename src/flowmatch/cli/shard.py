"""`flowmatch shard`"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowmatch.data.packing import Originals


def shard(
    spec: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|DATA.yaml",
            help="A folder of images, whose files are kept as they are, or a data config, whose"
            " images are kept as it makes them (cropped and resized, as PNG).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    shard_size: Annotated[
        int, typer.Option("--shard-size", "--shard_size", help="Images a shard.")
    ] = 1000,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Shards written at a time.  [default: one a CPU core]"),
    ] = None,
    labels: Annotated[
        bool, typer.Option(help="Take the subfolders of FOLDER as classes, if there are any.")
    ] = True,
) -> None:
    """Put images into tar files that training can stream (kind: shards).

    Classes come along, and a test split into a folder of its own. Started again after a kill, it
    goes on where it was.
    """
    from flowmatch.data.packing import pack

    workers = workers or os.cpu_count() or 1
    if shard_size < 1 or workers < 1:
        raise ValueError(
            f"--shard-size and --workers are at least 1, got {shard_size} and {workers}"
        )
    if spec.is_dir() and out.resolve().is_relative_to(spec.resolve()):
        raise ValueError(f"{out} lies inside {spec}; choose a folder for the shards outside")
    splits = _of_folder(spec, labels) if spec.is_dir() else _of_config(spec)
    for split, images in splits.items():
        folder = out if len(splits) == 1 else out / split
        with _shown(f"{split} images", len(images)) as advance:
            count = pack(images, folder, shard_size=shard_size, workers=workers, progress=advance)
        classes = f" of {len(images.classes)} classes" if images.classes is not None else ""
        print(f"{len(images):,} images{classes} in {count:,} shard{'s' * (count > 1)}: {folder}")
    print(f"train on them: data={{kind: shards, root: {out}, image_size: ...}}")


def _of_folder(folder: Path, labels: bool) -> dict[str, Originals]:
    """The images of a folder, by split."""
    from flowmatch.data import ImageFolder
    from flowmatch.data.packing import Files

    config = ImageFolder(root=str(folder), image_size=1, labels=labels)
    found: dict[str, Originals] = {"train": Files(*config.source("train"))}
    if any((folder / name).is_dir() for name in ("test", "val")):
        found["test"] = Files(*config.source("test"))
    return found


def _of_config(path: Path) -> dict[str, Originals]:
    """The images of a data config, by split."""
    from flowmatch.config import parse_data, read_yaml
    from flowmatch.data import Latent
    from flowmatch.data.packing import Pixels

    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise ValueError(f"{path} is neither a folder of images nor a data config (.yaml)")
    node = read_yaml(str(path))
    data = parse_data(node.get("data", node), where=str(path))
    if isinstance(data, Latent) or len(data.shape) != 3:
        raise ValueError(f"shards hold images, and {path} is of kind {data.kind}")
    if getattr(data, "conditions", {}):
        raise ValueError("shards hold no conditions besides the class; leave out data.conditions")
    found: dict[str, Originals] = {"train": Pixels(data.build("train"))}
    try:
        found["test"] = Pixels(data.build("test"))
    except ValueError as error:  # it may have none, or be damaged: the user knows which
        print(f"without a test split: {error}")
    return found


@contextmanager
def _shown(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, else a line at every tenth."""
    if sys.stderr.isatty():
        from flowmatch.training.tracking import Bar

        bar = Bar(total, label=label)
        try:
            yield bar.advance
        finally:
            bar.close()
        return
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        if done * 10 // total < (done + more) * 10 // total:
            print(f"{label} {done + more:,}/{total:,}", flush=True)
        done += more

    yield tell
