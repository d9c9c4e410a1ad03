"""Fitted features, kept from one command to the next."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from flowmatch.caching import write_whole
from flowmatch.data import Dataset
from flowmatch.data.dataset import digest
from flowmatch.features.fittednet import RECIPE, FittedNet
from flowmatch.features.fitting import Progress, check, fit


def fitted(
    train: Dataset,
    held_out: Dataset | None,
    *,
    seed: int = 0,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> FittedNet:
    """The net that `fit` makes of these data: from the cache if it is there, else fitted and kept.

    A file that is damaged is replaced; a cache that cannot be written is a warning.

    Args:
        train: see `fit`; so are `held_out`, `seed`, `device` and `progress`.
        cache: folder of the cache, or None not to use any; the nets are in its subfolder features.
    Raises:
        ValueError: as `fit`.
    """
    if cache is None:
        return fit(train, held_out, seed=seed, device=device, progress=progress)
    check(train, held_out)
    data, measured = train.identity(), None if held_out is None else held_out.identity()
    key = digest(f"{RECIPE} {train.num_classes} {seed}", data, measured)
    path = cache / "features" / f"{key}.safetensors"
    if path.is_file():
        with suppress(ValueError):  # a file that cannot be used is no reason to stop
            found = FittedNet.load(path)
            if (found.facts.data, found.facts.seed) == (data, seed):
                return found.to(device)
    net = fit(train, held_out, seed=seed, device=device, progress=progress)
    try:
        write_whole(path, net.save)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"the fitted features are not kept, since {path} cannot be written ({error}); set"
            " $FLOWMATCH_CACHE to a folder that can",
            stacklevel=2,
        )
    return net
