"""`flowmatch import`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    weights: Annotated[Path, typer.Argument(help="model_ema.pt of flow-matching-pytorch.")],
    config: Annotated[Path, typer.Option("-c", "--config", help="The config.yaml beside it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run directory to make.")],
) -> None:
    """Open another repository's checkpoint as a run directory."""
    from flowmatch.importing import import_seed

    checkpoint = import_seed(weights, config, out)
    print(
        f"imported into {out}; sample it: flowmatch sample {out} --n_samples 64 --save_dir samples"
    )
    print(f"checkpoint: {checkpoint}")
