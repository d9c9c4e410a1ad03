"""`flowmatch report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The file to write.  [default: RUN_DIR/report.html]"),
    ] = None,
) -> None:
    """Write one self-contained HTML page: samples, numbers with their protocols, curves, cost."""
    from flowmatch.report import write_report

    print(write_report(run_dir, out))
