"""`flowmatch tune`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    judge: Annotated[
        Literal["trajectories", "samples"],
        typer.Option(
            "--judge",
            help="What decides in the end: nearness to the trajectories, or the distance of samples"
            " to the training data, for which solvers that add noise compete as well.",
        ),
    ] = "trajectories",
    judged: Annotated[
        int | None,
        typer.Option(
            "--judged", help="Samples that the last of them are judged by.  [default: 1000]"
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

    Deterministic solvers on fixed grids compete for the ends of finely solved trajectories, the
    best with times fitted freely. With --judge samples, the best of them and solvers that add noise
    then compete for the distance to the training data. The choice goes to RUN_DIR/tuned.json.
    """
    from flowmatch.training.distributed import describe
    from flowmatch.tuned import FILE, TuneJob, tune_run

    if judged is not None and judge != "samples":
        raise ValueError("--judged goes with --judge samples")
    job = TuneJob(
        nfe=nfe,
        samples=num_samples,
        guidance=guidance_of(guidance, guidance_method, guidance_interval, guidance_schedule),
        kinds=tuple(name for word in solvers for name in word.split(",")) if solvers else None,
        reference_steps=reference_steps,
        judge=judge,
        judged=judged if judged is not None else TuneJob.judged,
        seed=seed,
        batch=bspp,
    )
    accelerator = one_process("tune")
    print(describe(accelerator))
    outcome = tune_run(
        run_dir, job, checkpoint=checkpoint, weights=weights, accelerator=accelerator
    )
    print(f"\n{outcome.as_table()}\nWritten to {run_dir / FILE}.")
    accelerator.end_training()
