"""`flowmatch tune`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowmatch.cli.options import (
    GuidanceInterval,
    GuidanceMethod,
    GuidanceSchedule,
    Scale,
    WhichCheckpoint,
    WhichWeights,
    guidance_of,
    one_process,
)


def tune(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    nfe: Annotated[
        int,
        typer.Option(
            "--nfe",
            help="The budget: network evaluations a sample; guidance takes two at a time.",
            show_default=False,
        ),
    ],
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples",
            "--num_samples",
            help="Trajectories to fit to; as many others decide, and as many give the error.",
        ),
    ] = 64,
    solvers: Annotated[
        list[str] | None,
        typer.Option(
            "--solvers",
            metavar="NAME,NAME...",
            help="The solvers to choose from, e.g. heun,dpmpp_2m.  [default: all suitable]",
        ),
    ] = None,
    guidance: Scale = 1.0,
    guidance_method: GuidanceMethod = "cfg",
    guidance_interval: GuidanceInterval = "0,1",
    guidance_schedule: GuidanceSchedule = "constant",
    reference_steps: Annotated[
        int | None,
        typer.Option(
            "--reference-steps",
            help="Steps of the fine solver (ab3) that stands for the truth."
            "  [default: 10 times --nfe, at least 100]",
        ),
    ] = None,
    checkpoint: WhichCheckpoint = "latest",
    weights: WhichWeights = "ema",
    seed: Annotated[int, typer.Option("--seed", help="Sample i depends on (seed, i).")] = 0,
    bspp: Annotated[int, typer.Option("--bspp", help="Batch size.")] = 100,
) -> None:
    """Choose the solver and time grid of a run for a budget, from its own trajectories.

    Deterministic solvers on fixed grids compete for the ends of finely solved trajectories. The
    best, with times fitted freely, goes to RUN_DIR/tuned.json.
    """
    from flowmatch.training.distributed import describe
    from flowmatch.tuned import FILE, TuneJob, tune_run
    from flowmatch.tuning import as_table

    job = TuneJob(
        nfe=nfe,
        samples=num_samples,
        guidance=guidance_of(guidance, guidance_method, guidance_interval, guidance_schedule),
        kinds=tuple(name for word in solvers for name in word.split(",")) if solvers else None,
        reference_steps=reference_steps,
        seed=seed,
        batch=bspp,
    )
    accelerator = one_process("tune")
    print(describe(accelerator))
    found = tune_run(
        run_dir, job, checkpoint=checkpoint, weights=weights, device=accelerator.device
    )
    print(f"\n{as_table(found)}\nWritten to {run_dir / FILE}.")
    accelerator.end_training()
