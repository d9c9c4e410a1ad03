"""The `flowmatch` command and its exit codes: 0 done, 1 failed, 2 wrong use, 130 Ctrl-C."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from flowmatch import __version__
from flowmatch.cli.arguments import normalise
from flowmatch.cli.compare import compare
from flowmatch.cli.edit import edit
from flowmatch.cli.ema import ema
from flowmatch.cli.evaluate import evaluate
from flowmatch.cli.export import export
from flowmatch.cli.import_ import import_
from flowmatch.cli.likelihood import likelihood
from flowmatch.cli.look import look
from flowmatch.cli.reference import reference
from flowmatch.cli.report import report
from flowmatch.cli.sample import sample
from flowmatch.cli.shard import shard
from flowmatch.cli.train import train
from flowmatch.cli.tune import tune

_INTERRUPTED = 130
"""What Typer ends with after Ctrl-C."""

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    invoke_without_command=True,
)


@app.callback()
def _version(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, sample, tune, evaluate and use flow-matching generative models."""
    if version:
        print(__version__)
        raise typer.Exit


app.command()(train)
app.command()(sample)
app.command()(tune)
app.command()(evaluate)
app.command()(compare)
app.command()(reference)
app.command()(report)
app.command()(likelihood)
app.command()(edit)
app.command()(ema)
app.command()(export)
app.command()(look)
app.command()(shard)
app.command("import")(import_)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake ends in one sentence, not in a traceback.

    Set FLOWMATCH_DEBUG=1 to see the traceback of any error.
    """
    words = normalise(list(sys.argv[1:] if arguments is None else arguments))
    warnings.showwarning = _show_warning
    try:
        app(words, prog_name="flowmatch")
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("FLOWMATCH_DEBUG"):
            raise
        sentence, code = _sentence(error)
        if os.environ.get("RANK", "0") == "0":
            print(f"flowmatch: {sentence}", file=sys.stderr)
        raise SystemExit(code) from None
    except SystemExit as end:
        if end.code == _INTERRUPTED and os.environ.get("RANK", "0") == "0":
            print("flowmatch: interrupted", file=sys.stderr)
        raise


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one sentence; who wants to know from which line sets FLOWMATCH_DEBUG=1."""
    if os.environ.get("RANK", "0") == "0":
        place = f" ({filename}:{lineno})" if os.environ.get("FLOWMATCH_DEBUG") else ""
        print(f"flowmatch: warning: {message}{place}", file=file or sys.stderr)


def _sentence(error: Exception) -> tuple[str, int]:
    """What to tell the user, and the exit code."""
    from flowmatch.solvers import Stalled
    from flowmatch.training.result import TrainingFailed

    if isinstance(error, ValueError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" ({error.filename})" if error.filename else ""
        return f"no space left on the disk{where}; what was finished before is intact", 1
    if isinstance(error, TrainingFailed | Stalled | OSError):
        return str(error), 1
    if _another_process_ended(error):
        return (
            "another process ended; its message, unless it was killed, says why, and a run goes on"
            " with --resume",
            1,
        )
    if _is_torch_out_of_memory(error):
        return "out of memory; set train.micro_batch=auto, or lower --bspp", 1
    raise error


def _another_process_ended(error: Exception) -> bool:
    import torch.distributed

    if not torch.distributed.is_available():
        return False
    # gloo says no more than "Connection closed by peer", or "reset", as a RuntimeError
    lost = "gloo/" in str(error) or "closed by peer" in str(error)
    return isinstance(error, torch.distributed.DistError) or lost


def _is_torch_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)
