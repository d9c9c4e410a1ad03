"""Numbers to read the others by: unseen data, its pixels in disorder, the finite set's bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowmatch.data import Dataset
from flowmatch.evaluation.extraction import KEPT_SAMPLES, SampleSet, local_set
from flowmatch.evaluation.scores import PointScores, Scores
from flowmatch.evaluation.sharding import evenly
from flowmatch.randomness import keyed_generator


def add_anchors(document: dict[str, Any], scores: Scores) -> None:
    """Measure what is known to be good and what is known to be bad like any set of samples.

    `anchors` holds held-out data, which a model can hardly beat, and of images the same ones with
    their pixels shuffled, which every model must beat. `floor` is what as many draws of the
    reference's own Gaussian score as there are samples: the part of each number that is bias.
    """
    if "floor" in document or "anchors" in document:  # of an earlier sweep
        return
    count = document["protocol"]["samples"]["count"]
    if isinstance(scores, PointScores):
        if scores.held_out is not None:
            points = _points(scores.held_out, count)
            found = {"count": len(points), "metrics": scores.measure(points)}
            document["anchors"] = {"held-out data": found}
        return
    document["floor"] = {"count": count, scores.primary: scores.floor(count)}
    if scores.held_out is None or scores.held_out.identity() == scores.statistics.identity:
        return
    count = min(count, len(scores.held_out))
    bare = replace(scores, train=None, conditional=False)
    document["anchors"] = {}
    for name, change in (("held-out data", None), ("its pixels shuffled", shuffled)):
        images = local_set(_batches(scores.held_out, count, change), scores.net)
        document["anchors"][name] = {"count": count, "metrics": bare.measure(images)}


def _points(dataset: Dataset, count: int) -> SampleSet:
    """Points from all over a set."""
    x = dataset.plain(evenly(len(dataset), count)).x1.flatten(1).cpu()
    return SampleSet(x, None, x[:KEPT_SAMPLES], None, 0, None, nfe=0, seconds=0.0)


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
