"""What a run will need, found from its config alone, before anything is built."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from flowmatch.config import Config
from flowmatch.room import require_memory, require_space
from flowmatch.training.settings import TrainConfig


def sketch_network(config: Config) -> nn.Module:
    """A config's network without memory for its weights: an impossible one costs nothing.

    Raises:
        ValueError: it does not suit the data's shape, or this machine's memory.
    """
    try:
        with torch.device("meta"):
            sketch = config.network.build(config.data.shape)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"the network cannot be built: {str(error).splitlines()[0]}") from None
    parameters = sum(p.numel() for p in sketch.parameters())
    require_memory(4 * parameters, f"{parameters:,} network parameters")
    return sketch


def check_space(run_dir: Path, network: nn.Module, config: TrainConfig, *, step: int) -> None:
    """Refuse to start when the disk cannot hold the run's checkpoints and snapshots to come."""
    parameters = sum(p.numel() for p in network.parameters())
    checkpoints = config.keep_last + 1 + (config.evaluate_every is not None)  # the best
    # model, averages, two moments, in float32
    need = 4 * parameters * (3 + len(config.profiles)) * checkpoints
    what = f"{checkpoints} checkpoints"
    if config.sharding == "fsdp":  # the last and the best are put together beside their shards
        kept = 1 + (config.evaluate_every is not None)
        need += 4 * parameters * (1 + len(config.profiles)) * kept
    if config.post_hoc is not None:
        count = len(config.post_hoc.stds) * config.snapshots_after(step)
        need += parameters * count * (4 if config.post_hoc.precision == "fp32" else 2)
        what += f" and {count:,} snapshots of averages"
    require_space(run_dir, need, what)
