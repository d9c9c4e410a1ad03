"""The page as a whole, put together and written."""

from __future__ import annotations

import os
import shlex
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from flowmatch import __version__
from flowmatch.config import to_yaml
from flowmatch.report.copies import copies_section
from flowmatch.report.cost import cost_section
from flowmatch.report.curves import curves_section
from flowmatch.report.html import Markup, element, join, paragraph, section
from flowmatch.report.overview import overview
from flowmatch.report.reading import Run, read_run
from flowmatch.report.samples import samples_section
from flowmatch.report.scores import scores_section


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write one HTML page about a run that needs nothing beside it; its path.

    Args:
        run_dir: a run directory. What it lacks, the page says in a sentence.
        out: the file, whose folder is made; None writes `RUN_DIR/report.html`.
    Raises:
        ValueError: no run directory, or a folder stands where the file should go.
    """
    run = read_run(run_dir)
    path = out or run_dir / "report.html"
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give -o the name of a file in it")
    words = ["flowmatch", "report", str(run_dir), *(["-o", str(out)] if out else [])]
    text = render(run, command=shlex.join(words))
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise ValueError(f"cannot write to {path}: {error.strerror}") from None
    except OSError:  # a full disk, for one
        partial.unlink(missing_ok=True)
        raise
    return path


def render(run: Run, *, command: str) -> str:
    """The page as text.

    Args:
        run: what it is about.
        command: what makes the page again, for its footer.
    """
    style = (resources.files("flowmatch.report") / "style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{run.name} · flowmatch run"),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        overview(run),
        element(
            "main",
            samples_section(run),
            scores_section(run),
            curves_section(run),
            cost_section(run),
            copies_section(run),
            _config_section(run),
        ),
        _footer(command),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _config_section(run: Run) -> Markup:
    starts = [r["started"] for r in run.with_key("started") if isinstance(r["started"], dict)]
    made = [
        f"{name} {starts[-1][name]}"
        for name in ("flowmatch", "torch")
        if starts and name in starts[-1]
    ]
    told = f"Trained with {' and '.join(made)}. " if made else ""
    rerun = Markup("Saved as config.yaml, this trains the model again: ")
    command = element("code", "flowmatch train -c config.yaml")
    return section(
        "Config",
        paragraph(told, rerun, command, "."),
        element("pre", to_yaml(run.config), class_="config"),
        name="config",
    )


def _footer(command: str) -> Markup:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    made = join(f"Made by flowmatch {__version__} on {now} with ", element("code", command), ".")
    return element("footer", paragraph(made))
