"""`flowmatch compare`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="Of `flowmatch evaluate`.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="The other one.")],
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="KEY", help="A key of the protocol that may differ."),
    ] = None,
) -> None:
    """Rank two evaluations, if their protocols allow it."""
    from flowmatch.evaluation import compare as rank

    for verdict in rank(a, b, allow=allow or ()):
        print(verdict)
