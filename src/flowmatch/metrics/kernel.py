"""The kernel distance of features (KID where they are Inception's)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from flowmatch.metrics.rows import as_feature_pair


class KernelDistance(NamedTuple):
    """Mean and standard deviation over subsets."""

    mean: float
    std: float


def kernel_distance(
    features: Tensor, reference: Tensor, *, subsets: int = 100, subset_size: int = 1000
) -> KernelDistance:
    """The squared maximum mean discrepancy with the cubic kernel, over random subsets.

        k(x, y) = (x . y / D + 1)^3

    Unbiased: its mean does not depend on the number of samples, and it may be negative. The
    numbers, the subsets and their seed (2020) are torch-fidelity's.

    Args:
        features: of samples, [N, D].
        reference: features of data, [M, D].
        subsets: how many, at least 1.
        subset_size: rows of a subset, at least 2; lowered to min(N, M) where there are fewer.
    Raises:
        ValueError: sets that do not fit together or have fewer than two rows, NaN, or numbers of
            subsets that make no sense.
    Source: Bińkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """
    from torch_fidelity.metric_kid import (
        KEY_METRIC_KID_MEAN,
        KEY_METRIC_KID_STD,
        kid_features_to_metric,
    )

    if subsets < 1 or subset_size < 2:
        raise ValueError(
            "the kernel distance needs at least 1 subset of at least 2 rows, got"
            f" subsets={subsets} and subset_size={subset_size}"
        )
    features, reference = as_feature_pair(features, reference, at_least=2)
    found = kid_features_to_metric(
        features,
        reference,
        kid_subsets=subsets,
        kid_subset_size=min(subset_size, len(features), len(reference)),
        verbose=False,
    )
    return KernelDistance(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])
