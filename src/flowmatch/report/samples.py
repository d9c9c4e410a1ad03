"""The page's samples: how they came to look as they do, and what each solver makes."""

from __future__ import annotations

from flowmatch.report.html import Markup, element, figure, missing, paragraph, section
from flowmatch.report.picture import embed
from flowmatch.report.reading import Run, number, spread_out


def samples_section(run: Run) -> Markup:
    """Sample grids of the training, then those of the evaluations."""
    return section("Samples", _progress(run), *_grids(run), name="samples")


def _progress(run: Run) -> Markup:
    if not run.samples:
        return missing(
            "No sample grids were drawn during training; to draw some, train with",
            run.train_command("train.sample_every_steps=1000"),
        )
    images = {number(r, "step"): number(r, "images") for r in run.records}
    pictures = [
        figure(
            embed(run.samples[step], f"Grid of samples drawn after {step:,} training steps"),
            f"step {step:,}" + (f", {seen:,.0f} images" if (seen := images.get(step)) else ""),
        )
        for step in spread_out(list(run.samples))
    ]
    told = "The same noise, and the same classes if there are any, as training went on"
    solver = run.config.sample.solver
    steps = getattr(solver, "steps", None)
    made = f"{solver.kind}, {steps:,} steps" if steps else solver.kind
    lead = paragraph(f"{told}: {run.config.train.profiles[0].title} weights, {made}.")
    return element("div", lead, element("div", *pictures, class_="strip"))


def _grids(run: Run) -> list[Markup]:
    """The grids of the newest evaluation that drew some."""
    for path, evaluation in reversed(run.evaluations.items()):
        figures = [
            figure(
                embed(path.parent / row.grid, f"Grid of samples drawn with {row.name}"),
                _described(row.name, row.nfe, path.stem),
            )
            for row in evaluation.rows
            if row.grid
        ]
        if figures:
            return [element("h3", "By solver"), element("div", *figures, class_="strip")]
    return []


def _described(name: str, nfe: float | None, stem: str) -> str:
    cost = f" ({nfe:,.0f} network evaluations each)" if nfe else ""
    return f"{name}{cost}; from evaluation {stem}"
