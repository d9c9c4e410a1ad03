"""Run directories: started, resumed and opened.

    runs/NAME/  config.yaml  metrics.jsonl  tensorboard/  samples/  ckpt/step0010000/...

A run directory alone is enough to sample, to resume, or to go on with elsewhere.
"""

from __future__ import annotations

import glob
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list

from flowmatch.agreement import check_conditions, check_names
from flowmatch.config import Config, load_config, to_yaml
from flowmatch.data import Latent
from flowmatch.evaluation.during_training import during_training
from flowmatch.flow import Flow
from flowmatch.room import require_memory
from flowmatch.sketch import check_space, sketch_network
from flowmatch.training.checkpoint import (
    Checkpoints,
    averages_of,
    is_checkpoint,
    problems,
    read_state,
)
from flowmatch.training.contents import MODEL, OWN_AVERAGE
from flowmatch.training.distributed import start_processes
from flowmatch.training.settings import PROFILED_STEPS
from flowmatch.training.shards import is_stored, whole_file
from flowmatch.training.trainer import Trainer
from flowmatch.training.weights import fit_weights, read_header, read_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

_CONFIG_PARTIAL = ".config.yaml.partial"


def build_flow(config: Config) -> Flow:
    """The untrained flow of a config; its weights follow from `train.seed`.

    Raises:
        ValueError: the network does not suit the data's shape.
    """
    sketch_network(config)
    shape = config.data.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        network = config.network.build(shape)
    data = config.data
    decoder = data.decoder() if isinstance(data, Latent) else None
    return Flow(network, path=config.path, predict=config.predict, shape=shape, decoder=decoder)


def build_trainer(
    config: Config,
    run_dir: str | Path,
    *,
    resume: str | None = None,
    overwrite: bool = False,
    accelerator: Accelerator | None = None,
) -> Trainer:
    """A trainer over a run directory, which is made, resumed or refused.

    Everything that can be wrong is found before anything is written.

    Args:
        config: the run's config.
        run_dir: where the run lives.
        resume: "latest" (the newest good checkpoint), "best", a checkpoint folder, or None.
        overwrite: delete a run that is there already.
        accelerator: processes and device; None starts them as the environment says.
    Raises:
        ValueError: what was asked for cannot be done; nothing was written.
    """
    run_dir = Path(run_dir)
    accelerator = accelerator or start_processes(config.train.precision)
    row = math.prod(config.data.shape)
    require_memory(8 * config.train.batch * row, f"train.batch={config.train.batch} and its noise")
    if resume is None:
        _refuse_existing(run_dir, overwrite, accelerator)
    check_names(config)
    checkpoint = _check_before_data(config, run_dir, resume)
    dataset = config.data.build("train")
    check_conditions(config, dataset)
    # only for what is wrong with it
    dataset.order(config.train.seed, batch=config.train.batch, processes=accelerator.num_processes)
    if isinstance(config.data, Latent):  # a run is decoded without its data
        config = replace(config, data=config.data.settled(dataset))
    flow = build_flow(config)
    on_main = accelerator.is_main_process
    trainer = Trainer(
        flow,
        config.loss,
        dataset,
        config.train,
        run_dir=run_dir,
        solver=config.sample.solver,
        config_yaml=to_yaml(config),
        accelerator=accelerator,
        evaluate=during_training(config, accelerator, say=print if on_main else _silent),
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
        _check_profile(config, trainer.step)
    # again: latents and features may have filled the disk
    check_space(run_dir, flow, config.train, step=trainer.step)
    if on_main:
        if overwrite and resume is None and run_dir.exists():
            _delete(run_dir)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_config(run_dir, config)
        except OSError as error:
            raise ValueError(f"cannot write to {run_dir}: {error.strerror}") from None
        trainer.set_aside()
    accelerator.wait_for_everyone()
    return trainer


def load(
    run_dir: str | Path,
    *,
    weights: str = "ema",
    checkpoint: str = "latest",
    device: torch.device | str = "cpu",
) -> Flow:
    """The trained flow of a run directory, ready to be sampled.

    Args:
        run_dir: a run directory, or one of its `ckpt/step...` folders.
        weights: "ema" (the run's own average), "model" (the weights as trained), the name of
            another average, e.g. "std0.05", or the path of a file.
        checkpoint: "latest", "best", or the path of a checkpoint folder.
        device: where to put it.
    Raises:
        ValueError: there is no run, no checkpoint or no such weights there, or they do not fit.
    """
    config, folder = open_run(run_dir, checkpoint)
    return load_flow(config, weights_file(folder, weights), device=device)


def open_run(
    run_dir: str | Path, checkpoint: str = "latest", *, overrides: Sequence[str] = ()
) -> tuple[Config, Path]:
    """The config (with overrides) and the checkpoint of a run directory or checkpoint folder."""
    path = Path(run_dir)
    if is_checkpoint(path):
        return load_config(path / "config.yaml", overrides), path
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path} is no run directory: it has no config.yaml")
    folder = find_checkpoint(path, checkpoint)
    if folder is None:
        raise ValueError(f"{path} has no checkpoint yet; train it first")
    return load_config(folder / "config.yaml", overrides), folder


def load_flow(config: Config, weights: Path, *, device: torch.device | str = "cpu") -> Flow:
    """A config's flow with the weights of a file, in evaluation mode.

    Raises:
        ValueError: the file is missing, truncated, or of another network.
    """
    flow = build_flow(config)
    fit_weights(flow.network, read_weights(weights), weights)
    return flow.eval().requires_grad_(False).to(device)


def weights_file(checkpoint: Path, weights: str) -> Path:
    """The file of the weights that `weights` names: "ema", "model", an average's name, or a file.

    What a sharded run left in shards is put together first, and kept beside them.

    Raises:
        ValueError: there are no such weights; says which there are.
    """
    averages = averages_of(checkpoint)
    known = {"ema": checkpoint / OWN_AVERAGE, "model": checkpoint / MODEL, **averages}
    if weights in known:
        return whole_file(known[weights])
    if is_stored(Path(weights)):
        return whole_file(Path(weights))
    made = [*(checkpoint.parents[1] / "ema").glob(f"{glob.escape(weights)}-step*.safetensors")]
    if made:
        raise ValueError(f"the weights {weights!r} lie in a file; give its path: {max(made)}")
    own, *others = averages
    named = "ema" if own == "ema" else f"ema (which is {own})"
    raise ValueError(
        f"there are no weights {weights!r}: {checkpoint} has {', '.join([named, *others])} and"
        " model, and a file is given by its path; `flowmatch ema` makes one of another width"
    )


def weights_title(path: Path) -> str:
    """What protocols call the weights of a file: "EMA std 0.05", "raw", or else its name."""
    older = {OWN_AVERAGE: "EMA", MODEL: "raw"}
    return read_header(path).get("title", older.get(path.name, path.name))


def find_checkpoint(run_dir: Path, which: str) -> Path | None:
    """The checkpoint folder that `which` names; None if a run has written none yet.

    Args:
        run_dir: the run directory.
        which: "latest", "best", or the path of a checkpoint folder.
    Raises:
        ValueError: there is no such run or checkpoint, or none can be read.
    """
    if which not in ("latest", "best"):
        path = Path(which)
        found = problems(path) if path.is_dir() else f"there is no checkpoint folder {path}"
        if found:
            raise ValueError(found)
        return path
    if not (run_dir / "config.yaml").is_file():
        raise ValueError(f"there is no run to resume in {run_dir}; leave out --resume to start one")
    if which == "best":
        best = Checkpoints(run_dir).best()
        if best is None:
            raise ValueError(
                f"{run_dir} has no best checkpoint: only runs that evaluate while they train keep"
                " one; use the latest"
            )
        return best
    checkpoints = Checkpoints(run_dir)
    newest = checkpoints.newest()
    if newest is None and checkpoints.all():
        raise ValueError(f"no checkpoint can be read: {problems(checkpoints.all()[-1])}")
    return newest


def new_run_dir() -> Path:
    """`runs/exp-<current time>`, the same in all processes."""
    name = [f"exp-{time.strftime('%Y-%m-%d-%H-%M-%S')}"]
    broadcast_object_list(name)
    return Path("runs") / name[0]


def write_config(run_dir: Path, config: Config) -> None:
    """Write the resolved config.yaml of a run, whole or not at all."""
    partial = run_dir / _CONFIG_PARTIAL
    partial.write_text(to_yaml(config))
    os.replace(partial, run_dir / "config.yaml")


def _check_profile(config: Config, step: int) -> None:
    """Refuse to profile what is left of a run where that is too short."""
    left = config.train.total_steps - step
    if config.train.profile and 0 < left < PROFILED_STEPS:
        raise ValueError(
            f"train.profile takes {PROFILED_STEPS} steps, but {left} are left of the run; leave it"
            " out, or make the run longer"
        )


def _check_before_data(config: Config, run_dir: Path, resume: str | None) -> Path | None:
    """Find what is wrong before data are decoded or encoded; the checkpoint to resume from."""
    network = sketch_network(config)
    checkpoint = find_checkpoint(run_dir, resume) if resume else None
    step = read_state(checkpoint)["step"] if checkpoint else 0
    check_space(run_dir, network, config.train, step=step)
    if isinstance(config.data, Latent):
        check_conditions(config, config.data.undecoded("train"))
    return checkpoint


def _silent(text: str) -> None:
    """What the other processes say."""


def _delete(run_dir: Path) -> None:
    """Delete a run, renamed first: a kill midway leaves no half of it under its name."""
    doomed = run_dir.with_name(f".{run_dir.name}.deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    run_dir.rename(doomed)
    shutil.rmtree(doomed)


def _refuse_existing(run_dir: Path, overwrite: bool, accelerator: Accelerator) -> None:
    taken = run_dir.exists()
    if taken and not run_dir.is_dir():
        raise ValueError(f"{run_dir} is a file; choose another -e")
    if run_dir.is_dir():  # a run that was killed while it wrote its config holds nothing yet
        taken = any(p.name != _CONFIG_PARTIAL for p in run_dir.iterdir())
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    if not taken:
        return
    if not overwrite:
        raise ValueError(
            f"{run_dir} exists; continue it with --resume, replace it with --overwrite, or choose"
            " another -e"
        )
    if not (run_dir / "config.yaml").exists() and not (run_dir / "ckpt").exists():
        raise ValueError(f"{run_dir} is no run directory, so --overwrite will not delete it")
