"""Foreign checkpoints as run directories."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from flowmatch.config import parse_config, read_yaml, to_yaml
from flowmatch.interop import seed
from flowmatch.runs import build_flow, write_config
from flowmatch.training.checkpoint import Checkpoints
from flowmatch.training.contents import Contents
from flowmatch.training.sharding import tensors_of
from flowmatch.training.weights import fit_weights, read_weights


def import_seed(weights: Path, config_file: Path, run_dir: Path) -> Path:
    """Turn a checkpoint of flow-matching-pytorch into a run directory; its checkpoint folder.

    Both the weights and their average become the imported ones, at step 0.

    Raises:
        ValueError: the files are not of that repository, do not fit, or the directory exists.
    """
    foreign = read_yaml(config_file)
    if not seed.is_seed_config(foreign):
        raise ValueError(
            f"{config_file} is no config of flow-matching-pytorch: it has no model.target"
        )
    if run_dir.exists():
        raise ValueError(f"{run_dir} exists; choose another -o")
    plain = {**seed.our_config(foreign), "network": asdict(seed.network_config(foreign))}
    config = parse_config(plain, where=str(config_file))
    flow = build_flow(config)
    fit_weights(flow.network, seed.convert_weights(read_weights(weights)), weights)
    run_dir.mkdir(parents=True)
    write_config(run_dir, config)
    tensors = tensors_of(flow.network)
    contents = Contents(
        network=tensors,
        averages={config.train.profiles[0]: tensors},
        state={"step": 0, "images": 0, "optimizer": None, "scaler": None},
        config_yaml=to_yaml(config),
    )
    return Checkpoints(run_dir).save(0, contents, keep_last=1)
