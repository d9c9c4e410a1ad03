"""What two processes do for test_sharding.py, all in one start: python -m torch.distributed.run."""

import json
import shutil
import sys
from pathlib import Path

import torch

from flowmatch.config import load_config
from flowmatch.runs import build_trainer
from flowmatch.training.distributed import start_processes
from flowmatch.training.sharding import local


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


def main(folder: Path) -> None:
    accelerator = start_processes()
    first = accelerator.is_main_process

    def run(name, *options, resume=None):
        settings = json.loads((folder / "options.json").read_text())
        config = load_config(folder / "tiny.yaml", [*settings[name], *options])
        trainer = build_trainer(config, folder / name, resume=resume, accelerator=accelerator)
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
    torch.save(found, folder / f"found-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()


main(Path(sys.argv[1]))
