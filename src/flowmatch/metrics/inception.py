"""The Inception Score."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from flowmatch.metrics.rows import as_rows


class InceptionScore(NamedTuple):
    """Mean and standard deviation over splits."""

    mean: float
    std: float


def inception_score(logits: Tensor, *, splits: int = 10) -> InceptionScore:
    """How sure a classifier is of each sample, and how even over the classes.

        exp( E_x KL( p(class | x) || E_x p(class | x) ) ),   from 1 to K, higher is better

    The numbers, the shuffle and its seed (2020) are torch-fidelity's.

    Args:
        logits: of samples, [N, K].
        splits: parts that the samples are cut into; each gives a score. From 1 to N.
    Raises:
        ValueError: not [N, K], NaN, or fewer rows than splits.
    Source: Salimans et al. 2016, "Improved Techniques for Training GANs", section 4.
    """
    from torch_fidelity.metric_isc import (
        KEY_METRIC_ISC_MEAN,
        KEY_METRIC_ISC_STD,
        isc_features_to_metric,
    )

    if logits.ndim != 2 or splits < 1:
        raise ValueError(
            "expected logits as [N, classes] and at least 1 split, got shape"
            f" {tuple(logits.shape)} and splits={splits}"
        )
    rows = as_rows(logits, "logits", at_least=splits)
    found = isc_features_to_metric(rows.cpu(), splits=splits, shuffle=True, rng_seed=2020)
    return InceptionScore(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])
