"""`flowmatch evaluate`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from flowmatch.cli.options import (
    Autoguide,
    GuidanceInterval,
    GuidanceMethod,
    GuidanceSchedule,
    Precision,
    Scale,
    TimeGrid,
    WhichCheckpoint,
    WhichWeights,
    guidance_of,
    parse_solvers,
    solver_overrides,
    weak_model,
)


def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_DIR|IMAGES [KEY.PATH=VALUE]...",
            help="A run directory, or samples: a folder of images, .npz or .parquet; changes to the"
            " run's config.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="SPEC",
            help="What samples are compared with: train or test (of the run's data), a data config"
            " (.yaml, :test behind it for that split), a folder, .npz, .parquet, or a statistics"
            " file (.safetensors).  [default: train]",
        ),
    ] = None,
    features: Annotated[
        Literal["inception", "dinov2", "data"] | None,
        typer.Option(
            "--features",
            help="Feature net of images; data: a classifier fitted to the training data."
            "  [default: data]",
        ),
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-samples",
            "--num_samples",
            help="Samples of a set.  [default: 50000 for inception and dinov2, else 5000; all of"
            " stored samples]",
        ),
    ] = None,
    solvers: Annotated[
        list[str] | None,
        typer.Option(
            "--solvers",
            metavar="NAME:STEPS,STEPS...",
            help="Rows of the table: euler:10,100,1000 heun:5,50,500; auto:10 is what `tune` chose"
            " for 10 evaluations.  [default: the run's own]",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Disjoint sets of samples, for the spread.")
    ] = 1,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Where the JSON goes.  [default: RUN_DIR/evaluation/]"),
    ] = None,
    feature_weights: Annotated[
        Path | None, typer.Option("--feature-weights", help="File with the feature net's weights.")
    ] = None,
    resize_reference: Annotated[
        bool,
        typer.Option("--resize-reference", help="Resize a reference of another resolution."),
    ] = False,
    checkpoint: WhichCheckpoint = "latest",
    weights: WhichWeights = "ema",
    grid: TimeGrid = None,
    guidance: Scale = 1.0,
    guidance_method: GuidanceMethod = "cfg",
    guidance_interval: GuidanceInterval = "0,1",
    guidance_schedule: GuidanceSchedule = "constant",
    autoguide: Autoguide = None,
    seed: Annotated[int, typer.Option("--seed", help="Sample i depends on (seed, i).")] = 0,
    bspp: Annotated[int, typer.Option("--bspp", help="Batch size of each process.")] = 100,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the network first: pays for long sweeps."),
    ] = False,
    mixed_precision: Precision = "no",
) -> None:
    """Measure a run, or stored samples, against a reference: table, picture and JSON."""
    from flowmatch.cli.train import PRECISIONS
    from flowmatch.dealing import usual_conditions
    from flowmatch.evaluation import (
        Request,
        Sweep,
        as_table,
        evaluate_flow,
        evaluate_stored,
        notes,
        prepare,
    )
    from flowmatch.evaluation.document import read_document
    from flowmatch.evaluation.stored import load_stored
    from flowmatch.facts import field_hash, model_facts
    from flowmatch.room import require_writable
    from flowmatch.runs import load_flow, open_run, weights_file
    from flowmatch.training.distributed import describe, start_processes

    overrides = [word for word in words if "=" in word]
    subjects = [Path(word) for word in words if "=" not in word]
    if len(subjects) != 1:
        raise ValueError(f"give one run directory or set of samples, got {len(subjects)}")
    subject = subjects[0]
    is_run = (subject / "config.yaml").is_file()
    guided = guidance_of(guidance, guidance_method, guidance_interval, guidance_schedule)
    if not is_run and (overrides or solvers or grid or autoguide or not guided.off):
        raise ValueError(
            f"{subject} is no run directory (it has no config.yaml), so --solvers, --grid,"
            " --guidance and changes to a config mean nothing for it"
        )
    if grid is not None and not solvers:
        raise ValueError("--grid is for the rows that --solvers names; give --solvers")
    solver_overrides(overrides, solvers=solvers)
    chosen = parse_solvers(
        solvers or [], subject, guidance=guided, autoguided=autoguide is not None, grid=grid
    )
    if json_file is not None and json_file.exists():
        read_document(json_file)  # refused now rather than after the work
    request = Request(reference, features, feature_weights, resize_reference)
    usual = 50_000 if features in ("inception", "dinov2") else 5_000
    count = usual if num_samples is None else num_samples
    sweep = Sweep(count, repeats, batch=bspp, seed=seed, guidance=guided)
    stored = None if is_run else load_stored(subject)
    accelerator = start_processes(PRECISIONS[mixed_precision])  # type: ignore[arg-type]
    say = print if accelerator.is_main_process else lambda *words: None
    say(describe(accelerator))
    if stored is not None:
        sweep = sweep.over(len(stored.x), all_of_it=num_samples is None)
        shape = tuple(stored.x.shape[1:])
        conditional = stored.labels is not None
        scores = prepare(request, shape, None, accelerator, conditional=conditional, say=say)
        document = evaluate_stored(stored, sweep, scores, accelerator, json_file=json_file)
    else:
        settings, folder = open_run(subject, checkpoint, overrides=overrides)
        path = weights_file(folder, weights)
        flow = load_flow(settings, path, device=accelerator.device)
        weak, weak_hash = weak_model(autoguide, path, folder)
        guided.check(flow, weak)
        weak = weak.to(accelerator.device) if weak is not None else None
        by = {"autoguide": weak_hash} if weak is not None else {}
        require_writable(subject / "evaluation")
        if compile:
            flow.network.compile()
        dealt = usual_conditions(flow, settings.data, sweep.count * sweep.repeats)
        sweep = replace(sweep, dealt=dealt)
        conditional = flow.num_classes is not None
        assert flow.decoded_shape is not None
        scores = prepare(
            request, flow.decoded_shape, settings, accelerator, conditional=conditional, say=say
        )
        document = evaluate_flow(
            flow,
            chosen or [settings.sample.solver],
            sweep,
            scores,
            accelerator,
            model=model_facts(subject, folder, weights, settings) | by,
            own_field=field_hash(open_run(subject, checkpoint)[0]),
            weak=weak,
            out=subject / "evaluation",
            json_file=json_file,
            say=say,
        )
    if accelerator.is_main_process:  # the others have no rows
        print("\n".join(["", as_table(document), "", *notes(document)]))
    accelerator.end_training()
