"""`flowmatch ema`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ema(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="A run trained with train.post_hoc.")
    ],
    std: Annotated[
        float,
        typer.Option(
            "--std", help="Width of the average: relative standard deviation, to 0.28867."
        ),
    ],
    images: Annotated[
        int | None,
        typer.Option("--images", help="Until when it averages.  [default: the newest snapshot]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="The .safetensors file to write.  [default: RUN_DIR/ema/std...]"
        ),
    ] = None,
) -> None:
    """Put together an average of the weights of any width, from the snapshots of a run."""
    from flowmatch.room import require_writable
    from flowmatch.training.post_hoc import reconstruct

    if out is not None and (out.suffix != ".safetensors" or out.is_dir()):
        raise ValueError(f"an average is written to a .safetensors file, not to {out}")
    if not (run_dir / "config.yaml").is_file():
        raise ValueError(f"{run_dir} is no run directory: it has no config.yaml")
    found = reconstruct(run_dir, std, images=images)
    path = out or run_dir / "ema" / found.file_name
    require_writable(path.parent)
    found.write(path)
    print(
        f"{found.title}, at {found.images:,} images, from {found.snapshots} snapshots; its profile"
        f" is off by {found.error:.2g} (relative RMS)"
    )
    print(f"{path}; sample it: flowmatch sample {run_dir} --weights {path} ...")
