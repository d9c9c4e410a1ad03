"""`flowmatch look`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def look(
    run_dir: Annotated[Path, typer.Argument(help="A run directory of an image model.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to.  [default: RUN_DIR/look]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples.")] = 0,
) -> None:
    """Draw what to look at: samples by class, nearest training images, a GIF, the loss."""
    from flowmatch.look import look as draw

    for path in draw(run_dir, out or run_dir / "look", seed=seed):
        print(path)
