"""`flowmatch edit`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowmatch.cli.options import (
    Conditions,
    Prompts,
    WhichCheckpoint,
    WhichWeights,
    one_process,
)


def edit(
    task: Annotated[
        Literal["inpaint", "superresolve", "deblur", "colourise", "sdedit", "interpolate"],
        typer.Argument(help="What to do.", show_default=False),
    ],
    run_dir: Annotated[
        Path, typer.Argument(help="A run directory of an image model.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, or folders of them.", show_default=False),
    ] = None,
    data: Annotated[
        Literal["train", "test"] | None,
        typer.Option("--data", help="Edit the run's own data instead; implies --degrade."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", help="The first so many of --data.  [default: 16]")
    ] = None,
    method: Annotated[
        Literal["projection", "posterior", "pnp", "dflow"] | None,
        typer.Option(
            "--method",
            help="projection: sample and project (100 evaluations); posterior: that with all the"
            " variety that is possible; pnp: closer to its mean, smoother; dflow: optimise the"
            " noise, slow.  [default: projection]",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            help="Steps of projection, posterior and pnp; L-BFGS iterations of dflow; Heun steps of"
            " sdedit and interpolate.  [default: the method's own]",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="inpaint: image of the model's size, white where unknown."),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            "--box", metavar="Y,X,H,W", help="inpaint: unknown box: top, left, height, width."
        ),
    ] = None,
    factor: Annotated[
        int | None,
        typer.Option(
            "--factor",
            help="superresolve: the model's side over the input's; inputs are means over boxes.",
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma", help="deblur: of the Gaussian blur in pixels, wrapped round at the borders."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", help="sdedit: 0 leaves the image alone, 1 forgets it."),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", help="interpolate: images with both ends.  [default: 8]"),
    ] = None,
    degrade: Annotated[
        bool,
        typer.Option(
            "--degrade",
            help="Take images as clean: degrade them, restore, print the PSNR against them.",
        ),
    ] = False,
    noise: Annotated[
        float | None,
        typer.Option(
            "--noise",
            help="Level of the inputs' noise, for images in [-1, 1]; added by --degrade."
            "  [default: 0; rounding to 8 bits is always reckoned with]",
        ),
    ] = None,
    label: Annotated[
        int | None,
        typer.Option("--class", help="Class of the images.  [default: unconditional]"),
    ] = None,
    prompt: Prompts = None,
    cond: Conditions = None,
    seed: Annotated[int, typer.Option("--seed", help="Image i depends on (seed, i).")] = 0,
    bspp: Annotated[int, typer.Option("--bspp", help="Batch size.")] = 64,
    checkpoint: WhichCheckpoint = "latest",
    weights: WhichWeights = "ema",
) -> None:
    """Edit images with a run's model: fill in, enlarge, deblur, colour, vary, interpolate."""
    from flowmatch.edits import EditJob, edit_run, parse_box, summary
    from flowmatch.training.distributed import describe

    job = EditJob(
        task=task,
        out=out,
        mask=mask,
        box=parse_box(box) if box is not None else None,
        factor=factor,
        sigma=sigma,
        strength=strength,
        frames=frames,
        method=method,
        steps=steps,
        degrade=degrade or None,
        noise=noise,
        seed=seed,
        label=label,
        batch=bspp,
    )
    accelerator = one_process("edit")
    print(describe(accelerator))
    record = edit_run(
        run_dir,
        job,
        images or [],
        data=data,
        count=count,
        prompts=prompt or (),
        given=cond or (),
        checkpoint=checkpoint,
        weights=weights,
        device=accelerator.device,
    )
    print(summary(record, job))
    accelerator.end_training()
