"""Whether samples are copies of the training data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.metrics.neighbours import nearest


class Memorisation(NamedTuple):
    """How near samples lie to the training data, beside held-out data; None without such data."""

    nn_samples: float
    """Median distance of a sample from its nearest training sample, RMS per coordinate."""
    nn_held_out: float | None
    """The same for held-out data."""
    nn_ratio: float | None
    """`nn_samples / nn_held_out`: near 1 for a model that has learned the law, 0 for copies."""
    authentic: float
    """Share of samples that are no copies, in [0, 1]."""
    authentic_held_out: float | None
    """The same share of held-out data: what a perfect model would get, and it is not 1."""


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor | None = None) -> Memorisation:
    """Distances from samples to their nearest training samples, and the share of authentic ones.

        authentic = share of samples s with |s - t| > |t - t'|

    where t is the training sample nearest to s and t' the training sample nearest to t. The number
    of samples does not bias either; the number of training samples does, so compare runs on one
    training set, and read each number beside the held-out data's.

    Args:
        samples: [N, *D].
        train: all training data, [M, *D] with M at least 2.
        held_out: data of the same law that was not trained on, [K, *D], or None.
    Raises:
        ValueError: shapes that differ, NaN, or held-out data that lie in the training set.
    Source: Alaa et al. 2022, "How Faithful is your Synthetic Data?" (authenticity).
    """
    if len(train) < 2:
        raise ValueError(f"expected at least 2 training samples, got {len(train)}")
    nn_samples, authentic = _compare(samples, train)
    if held_out is None:
        return Memorisation(nn_samples, None, None, authentic, None)
    nn_held_out, authentic_held_out = _compare(held_out, train)
    if nn_held_out == 0:
        raise ValueError(
            "at least half of the held-out data are copies of training data, so nothing can be"
            " compared with them; hold out data that is not in the training set"
        )
    ratio = nn_samples / nn_held_out
    return Memorisation(nn_samples, nn_held_out, ratio, authentic, authentic_held_out)


def _compare(x: Tensor, train: Tensor) -> tuple[float, float]:
    """Median distance of `x` from the training data, and the share that is authentic."""
    distance, row = nearest(x, train)
    # only the training samples that are somebody's nearest have to look for their own
    found, back = torch.unique(row, return_inverse=True)
    among_train = nearest(train[found.to(train.device)], train, exclude=found).distance[back]
    median = float(distance.quantile(0.5))
    return median, float((distance > among_train).double().mean())
