"""What two processes do for test_sharding.py, all in one start: python -m torch.distributed.run."""

import functools
import json
import shutil
import sys
from pathlib import Path

import torch

from flowmatch import runs
from flowmatch.config import load_config
from flowmatch.training.distributed import start_processes
from flowmatch.training.evaluating import Evaluated
from flowmatch.training.sharding import is_sharded, local, mesh_of, writers_of


def local_bytes(trainer) -> dict[str, int]:
    """What this process keeps of parameters, gradients, moments and averages."""
    parameters = [*trainer.objective.parameters()]
    optimizer = trainer.optimizer.state.values()
    kinds = {
        "parameters": parameters,
        "gradients": [p.grad for p in parameters if p.grad is not None],
        "moments": [v for state in optimizer for v in state.values() if v.ndim],
        "averages": [p for net in trainer.averages.networks.values() for p in net.parameters()],
    }
    return {k: sum(local(t).nbytes for t in tensors) for k, tensors in kinds.items()}


def size_of_weights(flow) -> Evaluated:
    """An evaluation that every process takes part in, and that finds every weight in its place."""
    assert not any(is_sharded(p) for p in flow.parameters())
    size = float(sum(p.square().sum() for p in flow.parameters()))
    return Evaluated({"size": size}, "size", 10, "sum of squares")


def break_an_average(trainer, *, after: int, rank: int) -> None:
    """Let one process find a number that is not finite, once, after so many steps."""
    real = trainer.train_step

    def step() -> None:
        real()
        if trainer.step == after:
            trainer.train_step = real
            if trainer.accelerator.process_index == rank:
                last = [p for p in trainer.averages.own.parameters() if local(p).numel()][-1]
                local(last).view(-1)[-1] = torch.nan

    trainer.train_step = step


def refusal(writers, rank: int) -> str:
    """What this process hears when another one has no room, or itself."""

    def work() -> None:
        if writers.shard.number == rank + 1:
            raise OSError(28, "No space left on device")

    try:
        writers.all(work)
    except OSError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    accelerator = start_processes()
    first = accelerator.is_main_process

    def run(name, *options, resume=None, before=lambda trainer: None):
        settings = json.loads((folder / "options.json").read_text())
        config = load_config(folder / "tiny.yaml", [*settings[name], *options])
        trainer = runs.build_trainer(config, folder / name, resume=resume, accelerator=accelerator)
        before(trainer)
        trainer.run()
        return trainer

    def begin_with(name, origin):
        if first:
            shutil.copytree(folder / origin, folder / name)
            shutil.rmtree(folder / name / "ckpt/step0000006")
        accelerator.wait_for_everyone()

    trainer = run("sharded")
    found = {"rank": accelerator.process_index, "bytes": local_bytes(trainer)}
    begin_with("resumed", "sharded")
    run("resumed", resume="latest")
    begin_with("from-whole", "whole")
    run("from-whole", "train.sharding=fsdp", resume="latest")
    begin_with("to-whole", "sharded")
    run("to-whole", "train.sharding=none", resume="latest")
    run("muon-sharded")
    begin_with("muon-resumed", "muon-sharded")
    run("muon-resumed", resume="latest")
    runs.during_training = lambda *_, say: size_of_weights
    for name, after in (("eventful", 6), ("anew", 2)):
        broken = functools.partial(break_an_average, after=after, rank=1)
        run(name, before=broken)
    writers = writers_of(mesh_of("fsdp", torch.nn.Linear(2, 2), accelerator))
    found["errors"] = [refusal(writers, rank) for rank in range(2)]
    torch.save(found, folder / f"found-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()


main(Path(sys.argv[1]))
