"""`flowmatch likelihood`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowmatch.cli.options import WhichCheckpoint, WhichWeights, one_process, solver_overrides


def likelihood(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_DIR [KEY.PATH=VALUE]...",
            help="A run directory; changes to its config.",
            show_default=False,
        ),
    ],
    split: Annotated[
        Literal["train", "test"], typer.Option("--split", help="Which part of the run's data.")
    ] = "test",
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples", "--num_samples", help="At most so many, evenly over the split."
        ),
    ] = 1000,
    probes: Annotated[
        int | None,
        typer.Option("--probes", help="Random probes of the divergence a sample.  [default: 4]"),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="The whole divergence: a backward pass for each value."),
    ] = False,
    dequantisations: Annotated[
        int,
        typer.Option("--dequantisations", help="Draws of noise an image: the more, the tighter."),
    ] = 1,
    solver: Annotated[
        str, typer.Option("--solver", metavar="NAME[:STEPS]", help="dopri5, heun:100, rk4:50 ...")
    ] = "dopri5",
    t0: Annotated[float, typer.Option("--t0", help="Time of the noise.")] = 0.0,
    t1: Annotated[
        float,
        typer.Option(
            "--t1", help="Time of the data; below 1, the density of a flow stopped there."
        ),
    ] = 1.0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Where the JSON goes.  [default: RUN_DIR/likelihood/]"),
    ] = None,
    checkpoint: WhichCheckpoint = "latest",
    weights: WhichWeights = "ema",
    seed: Annotated[int, typer.Option("--seed", help="Of probes and dequantisation.")] = 0,
    bspp: Annotated[int, typer.Option("--bspp", help="Batch size.")] = 100,
) -> None:
    """Bits a dimension (points: nats) of a run's data under its model."""
    from flowmatch.agreement import check_conditions
    from flowmatch.data_likelihood import (
        LikelihoodJob,
        check_data,
        data_likelihood,
        file_name,
        summary,
        write,
    )
    from flowmatch.evaluation.preparation import shown
    from flowmatch.facts import model_facts
    from flowmatch.likelihood import Exact, Hutchinson
    from flowmatch.room import require_writable
    from flowmatch.runs import load_flow, open_run, weights_file
    from flowmatch.solvers import parse
    from flowmatch.training.distributed import describe

    overrides = [word for word in words if "=" in word]
    run_dirs = [Path(word) for word in words if "=" not in word]
    if len(run_dirs) != 1:
        raise ValueError(f"give one run directory, got {len(run_dirs)}")
    solver_overrides(overrides, solver=solver)
    if exact and probes is not None:
        raise ValueError("give --exact or --probes, not both: the exact divergence has no probes")
    solvers = parse(solver)
    if len(solvers) != 1:
        raise ValueError(f"give one number of steps, e.g. heun:100, not {solver!r}")
    if json_file is not None and json_file.is_dir():
        raise ValueError(f"{json_file} is a folder; --json names a file")
    job = LikelihoodJob(
        split=split,
        count=num_samples,
        solver=solvers[0],
        divergence=Exact()
        if exact
        else Hutchinson(probes=4 if probes is None else probes, seed=seed),
        dequantisations=dequantisations,
        batch=bspp,
        seed=seed,
        t0=t0,
        t1=t1,
    )
    accelerator = one_process("likelihood")
    settings, folder = open_run(run_dirs[0], checkpoint, overrides=overrides)
    check_data(settings.data)
    dataset = settings.data.build(split)
    check_conditions(settings, dataset)
    flow = load_flow(settings, weights_file(folder, weights), device=accelerator.device)
    out = run_dirs[0] / "likelihood"
    require_writable(json_file.parent if json_file else out)
    print(describe(accelerator))
    with shown("likelihood", min(num_samples, len(dataset)), accelerator) as advance:
        document = data_likelihood(
            flow,
            dataset,
            job,
            device=accelerator.device,
            model=model_facts(run_dirs[0], folder, weights, settings),
            data_name=settings.data.kind,
            progress=advance,
        )
    path = json_file or out / file_name(document["protocol"])
    write(document, path)
    print("\n".join([*summary(document), str(path)]))
    accelerator.end_training()
