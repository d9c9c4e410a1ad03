"""`flowmatch reference`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def reference(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="A data config (.yaml, :test behind it for that split), a folder, .npz, .parquet.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .safetensors file to write.")],
    features: Annotated[
        Literal["inception", "dinov2", "data"], typer.Option("--features", help="Feature net.")
    ] = "data",
    feature_weights: Annotated[
        Path | None, typer.Option("--feature-weights", help="File with the feature net's weights.")
    ] = None,
) -> None:
    """Write a reference's statistics as one file, to be shared and given as --reference."""
    from flowmatch.evaluation import Request, save_reference
    from flowmatch.training.distributed import start_processes

    if out.suffix != ".safetensors":
        raise ValueError(f"a reference file ends in .safetensors, not {out.name}")
    request = Request(spec, features, feature_weights)
    accelerator = start_processes()
    statistics = save_reference(request, out, accelerator)
    if accelerator.is_main_process:
        print(f"{statistics.count:,} images of {statistics.name} in {out}")
    accelerator.end_training()
