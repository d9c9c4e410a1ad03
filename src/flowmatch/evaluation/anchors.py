"""Numbers to read the others by: unseen data, its pixels in disorder, the finite set's bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowmatch.data import Dataset
from flowmatch.evaluation.extraction import local_set
from flowmatch.evaluation.scores import ImageScores
from flowmatch.evaluation.sharding import evenly
from flowmatch.randomness import keyed_generator


def add_anchors(document: dict[str, Any], scores: ImageScores) -> None:
    """Measure what is known to be good and what is known to be bad like any set of samples.

    `anchors` holds held-out images, which a model can hardly beat, and the same images with their
    pixels shuffled, which every model must beat. `floor` is what as many draws of the reference's
    own Gaussian score as there are samples: the part of each number that is bias.
    """
    if "floor" in document:  # of an earlier sweep
        return
    count = document["protocol"]["samples"]["count"]
    document["floor"] = {"count": count, scores.primary: scores.floor(count)}
    if scores.held_out is None or scores.held_out.identity() == scores.statistics.identity:
        return
    count = min(count, len(scores.held_out))
    bare = replace(scores, train=None, conditional=False)
    found = {}
    for name, change in (("held-out data", None), ("its pixels shuffled", shuffled)):
        images = local_set(_batches(scores.held_out, count, change), scores.net)
        found[name] = {"count": count, "metrics": bare.measure(images)}
    document["anchors"] = found


def _batches(
    dataset: Dataset, count: int, change: Callable[[Tensor], Tensor] | None
) -> Iterator[Tensor]:
    """Plain images from all over a set, as uint8 [B, C, H, W], changed or not."""
    for index in torch.split(evenly(len(dataset), count), 250):
        images = dataset.raw(index, None).x1
        yield change(images) if change is not None else images


def shuffled(images: Tensor) -> Tensor:
    """The same pixels in another order, each image in its own: [B, C, H, W] -> [B, C, H, W]"""
    n, channels, height, width = images.shape
    keys = torch.rand(n, height * width, generator=keyed_generator("shuffled pixels"))
    order = keys.argsort(1)[:, None].expand(n, channels, -1)
    return images.flatten(2).gather(2, order.to(images.device)).view_as(images)
