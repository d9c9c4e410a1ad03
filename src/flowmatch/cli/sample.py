"""`flowmatch sample`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from flowmatch.solvers import SolverConfig


def sample(
    n_samples: Annotated[
        int, typer.Option("--n_samples", "--n-samples", help="Number of samples.")
    ],
    save_dir: Annotated[
        Path, typer.Option("--save_dir", "--save-dir", help="Folder for the samples.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN_DIR] [KEY.PATH=VALUE]...",
            help="A run directory, whose config and newest EMA weights are used; changes to the"
            " config.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Config, together with --weights.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Weights file, e.g. ckpt/step.../model_ema.safetensors."),
    ] = None,
    sampling_steps: Annotated[
        int | None,
        typer.Option(
            "--sampling_steps",
            "--sampling-steps",
            help="Solver steps.  [default: 100; with RUN_DIR, the run's own]",
        ),
    ] = None,
    sampling_method: Annotated[
        str | None,
        typer.Option(
            "--sampling_method",
            "--sampling-method",
            help="Solver: euler, midpoint, heun, rk4, dopri5."
            "  [default: euler; with RUN_DIR, the run's own]",
        ),
    ] = None,
    bspp: Annotated[int, typer.Option("--bspp", help="Batch size of each process.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Sample i depends on (seed, i).")] = 8888,
    label: Annotated[
        int | None,
        typer.Option("--class", help="Class of all samples.  [default: every class in turn]"),
    ] = None,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Classifier-free guidance scale; 1 is off.")
    ] = 1.0,
    format: Annotated[
        Literal["png", "npz"], typer.Option("--format", help="One PNG an image, or one npz.")
    ] = "png",
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"],
        typer.Option("-mp", "--mixed_precision", "--mixed-precision", help="Precision."),
    ] = "no",
) -> None:
    """Draw samples: from RUN_DIR, or from -c CONFIG and --weights WEIGHTS."""
    from flowmatch.cli.train import PRECISIONS
    from flowmatch.config import load_config
    from flowmatch.generation import SampleJob, generate
    from flowmatch.runs import load_flow, open_run
    from flowmatch.training.checkpoint import hash_weights
    from flowmatch.training.distributed import describe, start_processes

    overrides = [word for word in words or [] if "=" in word]
    run_dirs = [word for word in words or [] if "=" not in word]
    if len(run_dirs) > 1:
        raise ValueError(f"give one run directory, got {', '.join(run_dirs)}")
    if run_dirs and (config or weights):
        raise ValueError("give a run directory, or -c CONFIG and --weights WEIGHTS; not both")
    if run_dirs:
        settings, folder = open_run(run_dirs[0], overrides=overrides)
        weights = folder / "model_ema.safetensors"
        solver = choose_solver(sampling_method, sampling_steps, settings.sample.solver)
    elif config is not None and weights is not None:
        settings = load_config(config, overrides)
        solver = choose_solver(sampling_method, sampling_steps, None)
    else:
        raise ValueError("sample needs a run directory, or -c CONFIG and --weights WEIGHTS")
    flow = load_flow(settings, weights)
    accelerator = start_processes(PRECISIONS[mixed_precision])  # type: ignore[arg-type]
    job = SampleJob(
        count=n_samples,
        save_dir=save_dir,
        solver=solver,
        batch=bspp,
        seed=seed,
        label=label,
        guidance=guidance,
        format=format,
        weights_hash=hash_weights(weights),
    )
    record = generate(flow, job, accelerator)
    if accelerator.is_main_process:
        print(describe(accelerator))
        print(
            f"{n_samples:,} samples in {save_dir} ({solver.kind}, {record['nfe']:g} evaluations"
            f" a sample, {record['seconds']:.1f} s); see {save_dir / 'contact-sheet.png'}"
        )
    accelerator.end_training()


def choose_solver(
    method: str | None, steps: int | None, default: SolverConfig | None
) -> SolverConfig:
    """The solver that the flags name; what they leave open is the default's, or 100 steps.

    Raises:
        ValueError: no such solver (lists those that exist), or steps for an adaptive one.
    """
    import dataclasses

    from flowmatch.solvers import Dopri5, by_name

    if default is None or method not in (None, default.kind):
        default = by_name(method or "euler")()
    if steps is None:
        return default
    if isinstance(default, Dopri5):
        raise ValueError(f"{default.kind} chooses its own steps; leave out --sampling_steps")
    return dataclasses.replace(default, steps=steps)
