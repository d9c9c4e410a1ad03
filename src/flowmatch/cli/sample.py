"""`flowmatch sample`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowmatch.cli.options import (
    Autoguide,
    Conditions,
    GuidanceInterval,
    GuidanceMethod,
    GuidanceSchedule,
    Precision,
    Prompts,
    Scale,
    TimeGrid,
    choose_solver,
    guidance_of,
    solver_overrides,
    tuned_solver,
    weak_model,
)

if TYPE_CHECKING:
    from flowmatch.config import Config


def sample(
    save_dir: Annotated[
        Path, typer.Option("--save_dir", "--save-dir", help="Folder for the samples.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN_DIR] [KEY.PATH=VALUE]...",
            help="A run directory, whose config and newest weights are used; changes to the"
            " config.",
            show_default=False,
        ),
    ] = None,
    n_samples: Annotated[
        int | None,
        typer.Option("--n_samples", "--n-samples", help="Number of samples: 0 to N-1."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="Exactly these samples instead, e.g. 5,17,100-131."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Config, together with --weights.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE|ema|model|NAME",
            help="Weights file, e.g. ckpt/step.../model_ema.safetensors; with RUN_DIR also its own"
            " average, its weights as trained, or another average by its name (e.g. std0.05)."
            "  [default with RUN_DIR: ema]",
        ),
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
            help="Solver: euler, heun, dpmpp_2m, unipc, dopri5, ancestral, ... (any other name"
            " lists all); auto is what `tune` chose."
            "  [default: euler; with RUN_DIR, the run's own]",
        ),
    ] = None,
    grid: TimeGrid = None,
    nfe: Annotated[
        int | None,
        typer.Option("--nfe", help="The budget of auto.  [default: the only one tuned for]"),
    ] = None,
    bspp: Annotated[
        str,
        typer.Option(
            "--bspp",
            metavar="N|auto",
            help="Batch size of each process; auto finds the fastest on a CPU, the largest that"
            " fits on a GPU.",
        ),
    ] = "100",
    seed: Annotated[int, typer.Option("--seed", help="Sample i depends on (seed, i).")] = 8888,
    label: Annotated[int | None, typer.Option("--class", help="Class of all samples.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="all|LIST",
            help="Classes to deal in turn: all, or e.g. 0,3,7.  [default: all]",
        ),
    ] = None,
    prompt: Prompts = None,
    cond: Conditions = None,
    guidance: Scale = 1.0,
    guidance_method: GuidanceMethod = "cfg",
    guidance_interval: GuidanceInterval = "0,1",
    guidance_schedule: GuidanceSchedule = "constant",
    autoguide: Autoguide = None,
    format: Annotated[
        Literal["png", "npz", "webdataset"],
        typer.Option("--format", help="One PNG an image, one npz, or tar files."),
    ] = "png",
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size", "--shard_size", help="Samples of a webdataset shard.  [default: 1000]"
        ),
    ] = None,
    trajectory: Annotated[
        Literal["gif", "mp4"] | None,
        typer.Option("--trajectory", help="Animate how the first samples come about."),
    ] = None,
    compile: Annotated[
        Literal["off", "step", "grid"],
        typer.Option(
            "--compile",
            help="Compile the network (step: seconds once, pays from some thousand samples on), or"
            " the whole integration as one graph (grid: minutes that grow with the evaluations;"
            " pays for few steps and a hundred thousand samples). Changes only the last bits.",
        ),
    ] = "off",
    mixed_precision: Precision = "no",
) -> None:
    """Draw samples: from RUN_DIR, or from -c CONFIG and --weights WEIGHTS."""
    from flowmatch.cli.train import PRECISIONS
    from flowmatch.facts import field_hash
    from flowmatch.generation import SampleJob, asked_conditions, generate, parse_seeds
    from flowmatch.runs import load_flow, weights_title
    from flowmatch.training.distributed import describe, start_processes
    from flowmatch.training.weights import hash_weights

    wanted = parse_seeds(seeds, n_samples)
    overridden = solver_overrides(
        words or [], sampling_method=sampling_method, sampling_steps=sampling_steps, grid=grid
    )
    run_dir, settings, own, path, checkpoint = _model(words or [], config, weights)
    flow = load_flow(settings, path)
    weights_hash = hash_weights(path)
    guided = guidance_of(guidance, guidance_method, guidance_interval, guidance_schedule)
    if sampling_method == "auto":
        if sampling_steps is not None or grid is not None:
            raise ValueError("auto has steps and a grid of its own; say the budget with --nfe")
        solver = tuned_solver(
            run_dir,
            nfe=nfe,
            guidance=guided,
            autoguided=autoguide is not None,
            weights_hash=weights_hash,
        )
    elif nfe is not None:
        raise ValueError("--nfe is the budget of --sampling_method auto; else --sampling_steps")
    else:
        default = settings.sample.solver if run_dir is not None or overridden else None
        solver = choose_solver(sampling_method, sampling_steps, default, grid=grid)
    if shard_size is not None and format != "webdataset":
        raise ValueError(f"--shard-size is for --format webdataset, not {format}")
    weak, weak_hash = weak_model(autoguide, path, checkpoint)
    of_classes = _classes(label, classes, flow.num_classes)
    conditions = asked_conditions(
        settings,
        flow,
        prompts=prompt or [],
        given=cond or [],
        classes=of_classes is not None,
        count=max(wanted) + 1,
    )
    accelerator = start_processes(PRECISIONS[mixed_precision])  # type: ignore[arg-type]
    job = SampleJob(
        seeds=wanted,
        save_dir=save_dir,
        solver=solver,
        batch=_batch(bspp),
        stream=seed,
        classes=of_classes,
        conditions=conditions,
        guidance=guided,
        format=format,
        trajectory=trajectory,
        compile=compile,
        weights_hash=weights_hash,
        weights_title=weights_title(path),
        weak_hash=weak_hash,
        field_hash=field_hash(settings),
        own_field_hash=field_hash(own),
        **({} if shard_size is None else {"shard_size": shard_size}),
    )
    say = print if accelerator.is_main_process else None
    record = generate(flow, job, accelerator, weak=weak, say=say)
    if accelerator.is_main_process:
        print(describe(accelerator))
        spent = "" if record["nfe"] is None else f" {record['nfe']:g} evaluations a sample,"
        print(
            f"{len(wanted):,} samples in {save_dir} ({solver.kind},{spent}"
            f" {record['seconds']:.1f} s); see {save_dir / 'contact-sheet.png'}"
        )
    accelerator.end_training()


def _model(
    words: list[str], config: Path | None, weights: str | None
) -> tuple[str | None, Config, Config, Path, Path | None]:
    """By either door: the run directory if any, the config with and without its overrides, the
    weights file, the checkpoint if any."""
    from flowmatch.config import load_config
    from flowmatch.runs import open_run, weights_file
    from flowmatch.training.shards import whole_file

    overrides = [word for word in words if "=" in word]
    run_dirs = [word for word in words if "=" not in word]
    if len(run_dirs) > 1:
        raise ValueError(f"give one run directory, got {', '.join(run_dirs)}")
    if run_dirs and config:
        raise ValueError("give a run directory, or -c CONFIG and --weights WEIGHTS; not both")
    if run_dirs:
        settings, folder = open_run(run_dirs[0], overrides=overrides)
        own, _ = open_run(run_dirs[0])
        return run_dirs[0], settings, own, weights_file(folder, weights or "ema"), folder
    if config is None or weights is None:
        raise ValueError("sample needs a run directory, or -c CONFIG and --weights WEIGHTS")
    path = whole_file(Path(weights))
    return None, load_config(config, overrides), load_config(config), path, None


def _classes(
    label: int | None, classes: str | None, num_classes: int | None
) -> tuple[int, ...] | None:
    from flowmatch.generation import parse_classes

    if label is not None and classes is not None:
        raise ValueError("give --class for one class or --classes for several; not both")
    if classes is not None:
        return parse_classes(classes, num_classes)
    return None if label is None else (label,)


def _batch(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--bspp is a number or auto, got {text!r}") from None
