"""`flowmatch train`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY.PATH=VALUE", help="Changes to the config."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="The run's YAML config.")
    ] = None,
    exp_dir: Annotated[
        Path | None,
        typer.Option(
            "-e", "--exp_dir", "--exp-dir", help="Run directory.  [default: runs/exp-TIME]"
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "-r",
            "--resume",
            metavar="[latest|best|PATH]",
            help="Go on from a checkpoint of the run; alone, it means latest.",
        ),
    ] = None,
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"] | None,
        typer.Option(
            "-mp", "--mixed_precision", "--mixed-precision", help="Replaces train.precision."
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "-cd", "--cover_dir", "--cover-dir", "--overwrite", help="Replace a run that exists."
        ),
    ] = False,
) -> None:
    """Train a model: config in, run directory out."""
    from flowmatch import runs
    from flowmatch.config import load_config
    from flowmatch.resuming import config_to_resume
    from flowmatch.training.distributed import describe, start_processes

    changes = list(overrides or [])
    launched_with = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed_precision is None and launched_with != "no":  # accelerate launch --mixed_precision
        changes.append(f"train.precision={launched_with}")
    if mixed_precision is not None:
        changes.append(f"train.precision={PRECISIONS[mixed_precision]}")
    if resume is not None and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it; choose one")
    if resume is not None:
        if exp_dir is None:
            raise ValueError("--resume needs the run directory: -e RUN_DIR")
        settings, different = config_to_resume(exp_dir, str(config) if config else None, changes)
    elif config is None:
        raise ValueError("train needs a config: -c configs/digits.yaml, for example")
    else:
        settings, different = load_config(config, changes), []
    accelerator = start_processes(settings.train.precision)
    run_dir = exp_dir or runs.new_run_dir()
    trainer = runs.build_trainer(
        settings, run_dir, resume=resume, overwrite=overwrite, accelerator=accelerator
    )
    say = print if accelerator.is_main_process else lambda *words: None
    say(f"run directory: {run_dir}")
    say(describe(accelerator))
    for change in different:
        say(f"changed: {change}")
    if resume is not None:
        say(f"resuming at step {trainer.step:,}")
    plan = settings.train
    if (warmup := plan.schedule.warmup(plan.batch)) > plan.total_steps:
        say(
            f"the warm-up of {warmup:,.0f} steps outlasts the run of {plan.total_steps:,}: the rate"
            f" only reaches {plan.total_steps / warmup:.2g} of lr; train.schedule sets it"
        )
    result = trainer.run()
    if result.stopped:
        say(f"stopped at step {result.step:,} as asked; go on with: train -e {run_dir} --resume")
    if (last := result.evaluation) is not None:
        say(f"last evaluation: {last.primary} {last.value:.4g} | {last.protocol}")
        if result.best_step is not None:
            say(f"best of those on the way: step {result.best_step:,}, kept as ckpt/best")
    say(f"checkpoint: {result.checkpoint}")
    accelerator.end_training()
