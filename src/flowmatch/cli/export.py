"""`flowmatch export`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="A run, or one of its checkpoint folders.")
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint", metavar="[latest|best|PATH]", help="Which checkpoint of the run."
        ),
    ] = "latest",
) -> None:
    """Put the weights of a sharded checkpoint together: one file for the model and each average.

    They are kept in the checkpoint, beside its shards. It takes one process, anywhere. What reads a
    run does it by itself, and a run that ends has done it for its last and its best checkpoint.
    """
    from flowmatch import runs
    from flowmatch.training.checkpoint import export as put_together

    _, folder = runs.open_run(run_dir, checkpoint)
    for path in put_together(folder):
        print(f"{path} ({path.stat().st_size / 2**20:,.1f} MiB)")
