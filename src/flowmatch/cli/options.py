"""Options that several commands share, and what they mean together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from accelerate import Accelerator

    from flowmatch.flow import Flow
    from flowmatch.guidance import Guidance
    from flowmatch.solvers import AnySolver, SolverConfig

Method = Literal["cfg", "cfg_zero", "apg"]
Schedule = Literal["constant", "linear", "cosine"]

Scale = Annotated[float, typer.Option("--guidance", help="Guidance scale; 1 is off.")]
GuidanceMethod = Annotated[
    Method, typer.Option("--guidance-method", help="Classifier-free guidance, CFG-Zero* or APG.")
]
GuidanceInterval = Annotated[
    str, typer.Option("--guidance-interval", metavar="LO,HI", help="The times that are guided.")
]
GuidanceSchedule = Annotated[
    Schedule, typer.Option("--guidance-schedule", help="How the scale rises over time.")
]
Autoguide = Annotated[
    str | None,
    typer.Option(
        "--autoguide",
        metavar="RUN_DIR|CHECKPOINT|model",
        help="Guide away from a weaker model instead: another run or checkpoint, or the run's own"
        " weights without averaging.",
    ),
]
TimeGrid = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="GRID",
        help="Time grid: uniform, shifted:3, edm:7, logit_normal:0,1, or the times themselves,"
        " 0,0.1,0.4,1.  [default: the solver's own]",
    ),
]

Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Text to condition on; several are dealt in turn."),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--cond",
        metavar="NAME=VALUE",
        help="Another condition: a number, a text, or a .npy file of values to deal in turn. What"
        " is not said is absent; of samples, if nothing is, it is that of the training data.",
    ),
]

WhichCheckpoint = Annotated[
    str, typer.Option("--checkpoint", metavar="latest|best|PATH", help="Which checkpoint.")
]
WhichWeights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="ema|model|NAME|FILE",
        help="The run's own average, the weights as trained, another average by its name (e.g."
        " std0.05), or a file.",
    ),
]
Precision = Annotated[
    Literal["no", "fp16", "bf16"],
    typer.Option("-mp", "--mixed_precision", "--mixed-precision", help="Precision."),
]


def one_process(command: str) -> Accelerator:
    """The device of a command that does not share its work.

    Raises:
        ValueError: it was started on several processes.
    """
    from flowmatch.training.distributed import start_processes

    accelerator = start_processes()
    if accelerator.num_processes > 1:
        raise ValueError(f"{command} runs in one process; start it without a launcher")
    return accelerator


def guidance_of(scale: float, method: Method, interval: str, schedule: Schedule) -> Guidance:
    """The guidance that the flags name.

    Raises:
        ValueError: a value is out of its range, or guidance is off and yet described.
    """
    from flowmatch.guidance import Guidance

    try:
        lo, hi = (float(word) for word in interval.split(","))
    except ValueError:
        raise ValueError(
            f"--guidance-interval is two times, e.g. 0.2,0.8, got {interval!r}"
        ) from None
    guided = Guidance(scale=scale, method=method, interval=(lo, hi), schedule=schedule)
    if guided.off and guided != Guidance():
        raise ValueError(
            "guidance scale 1 is off; give --guidance, or leave out its method, interval and"
            " schedule"
        )
    return guided


def weak_model(
    name: str | None, weights: Path, checkpoint: Path | None = None
) -> tuple[Flow | None, str | None]:
    """The weak model that --autoguide names, and the hash of its weights; None without one.

    Args:
        name: a run directory, a checkpoint folder, or "model".
        weights: the weights file of the model that is guided.
        checkpoint: the checkpoint that "model" is of; the folder of `weights` if None.
    Raises:
        ValueError: there is no such model.
    """
    from flowmatch.config import load_config
    from flowmatch.runs import load_flow, open_run, weights_file
    from flowmatch.training.contents import MODEL
    from flowmatch.training.shards import whole_file
    from flowmatch.training.weights import hash_weights

    if name is None:
        return None, None
    if name == "model":
        folder = checkpoint or weights.parent
        path, config = whole_file(folder / MODEL), folder / "config.yaml"
        if path == weights or not path.is_file() or not config.is_file():
            raise ValueError(
                f"--autoguide model needs the weights without averaging beside {weights}; give a"
                " run directory or a checkpoint"
            )
        settings = load_config(config)
    else:
        settings, folder = open_run(name)
        path = weights_file(folder, "ema")
    weak_hash = hash_weights(path)
    if weak_hash == hash_weights(weights):
        raise ValueError(
            f"--autoguide {name} has the very weights that it should guide; give a weaker model"
        )
    return load_flow(settings, path), weak_hash


def choose_solver(
    method: str | None,
    steps: int | None,
    default: SolverConfig | None,
    *,
    grid: str | None = None,
) -> SolverConfig:
    """The solver that the flags name; what they leave open is the default's, or 100 steps.

    Raises:
        ValueError: no such solver or grid (lists those that exist), or steps or a grid for an
            adaptive one.
    """
    import dataclasses

    from flowmatch.solvers import ExplicitGrid, GridSolver, by_name, parse_grid

    if default is None or method not in (None, default.kind):
        default = by_name(method or "euler")()
    if steps is None and grid is None:
        return default
    if not isinstance(default, GridSolver):
        raise ValueError(
            f"{default.kind} chooses its own steps; leave out --sampling_steps and --grid"
        )
    times = parse_grid(grid) if grid is not None else default.grid
    if isinstance(times, ExplicitGrid) and grid is not None and steps is None:
        steps = len(times.values) - 1
    return dataclasses.replace(default, steps=default.steps if steps is None else steps, grid=times)


def solver_overrides(words: Sequence[str], **flags: object) -> list[str]:
    """Those of the overrides that change the config's solver.

    Args:
        words: "key.path=value" and others.
        flags: what names a solver too; None or empty where it was not given.
    Raises:
        ValueError: both an override and a flag were given.
    """
    overrides = [word for word in words if word.startswith(("sample.solver.", "sample.solver="))]
    given = [name for name, value in flags.items() if value]
    if overrides and given:
        raise ValueError(
            f"{overrides[0]} and --{given[0]} both say which solver; give one of the two"
        )
    return overrides


def tuned_solver(
    run_dir: str | Path | None,
    *,
    nfe: int | None,
    guidance: Guidance,
    autoguided: bool,
    weights_hash: str | None = None,
) -> SolverConfig:
    """The solver that `auto` stands for.

    Raises:
        ValueError: there is no run directory, or nothing in it is tuned for this.
    """
    from flowmatch.tuned import read_tuned

    if run_dir is None:
        raise ValueError("auto uses what `flowmatch tune RUN_DIR` found; give a run directory")
    if autoguided:
        raise ValueError("nothing is tuned for autoguidance; name a solver instead of auto")
    return read_tuned(Path(run_dir), nfe=nfe, guidance=guidance, weights_hash=weights_hash)


def parse_solvers(
    specs: Sequence[str],
    run_dir: str | Path,
    *,
    guidance: Guidance,
    autoguided: bool = False,
    grid: str | None = None,
) -> list[AnySolver]:
    """The solvers of a table: "heun:5,50", "dopri5", or "auto:10" for the run's tuned ones.

    Args:
        grid: the time grid of all that have one, but the tuned ones.
    """
    import dataclasses

    from flowmatch.solvers import GridSolver, parse, parse_grid

    times = parse_grid(grid) if grid is not None else None
    found: list[AnySolver] = []
    for spec in specs:
        name, _, budgets = spec.partition(":")
        if name != "auto":
            found += [
                dataclasses.replace(s, grid=times) if times and isinstance(s, GridSolver) else s
                for s in parse(spec)
            ]
            continue
        if not all(word.isdecimal() for word in budgets.split(",") if budgets):
            raise ValueError(f"cannot read {spec!r}; write auto, or auto:4,10 for budgets")
        for word in budgets.split(",") if budgets else [None]:
            nfe = int(word) if word is not None else None
            found.append(tuned_solver(run_dir, nfe=nfe, guidance=guidance, autoguided=autoguided))
    return list(dict.fromkeys(found))
