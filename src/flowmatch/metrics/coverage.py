"""Fidelity and diversity apart: precision and recall, density and coverage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowmatch.metrics.neighbours import squared_distance_tiles
from flowmatch.metrics.rows import as_feature_pair


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density may exceed 1; coverage is a share in [0, 1]."""

    density: float
    coverage: float


def precision_recall(
    features: Tensor, reference: Tensor, *, neighbours: int = 3
) -> PrecisionRecall:
    """The share of samples among the data, and the share of data among the samples.

    A set's region is the union of balls around its rows, each as wide as the distance of the
    row's k-th neighbour in the set. Both depend on how many rows there are: compare equal numbers.
    The numbers are torch-fidelity's, in the precision of the features.

    Args:
        features: of samples, [N, D].
        reference: features of data, [M, D].
        neighbours: k, at least 1 and below N and M.
    Raises:
        ValueError: sets that do not fit together, too few rows, or NaN.
    Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric", section 2.
    """
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    features, reference = _checked(features, reference, neighbours)
    found = prc_features_to_metric(
        features,
        reference,
        prc_neighborhood=neighbours,
        save_cpu_ram=True,  # distances of 10,000 rows at once
        verbose=False,
    )
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL])


def density_coverage(
    features: Tensor, reference: Tensor, *, neighbours: int = 5
) -> DensityCoverage:
    """Precision and recall that outliers spoil less: only the data have balls.

        density  = 1 / (k N) sum_i sum_j [ sample i lies in the ball of datum j ]
        coverage = 1 / M     sum_j [ some sample lies in the ball of datum j ]

    A ball is as wide as the distance of the datum's k-th neighbour in the data. For samples of the
    data's own law and N = M the density is 1 and the coverage 1 - 2^-k, about.

    Args:
        features: of samples, [N, D].
        reference: features of data, [M, D].
        neighbours: k, at least 1 and below N and M.
    Raises:
        ValueError: sets that do not fit together, too few rows, or NaN.
    Source: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics", section 3.
    """
    features, reference = _checked(features, reference, neighbours)
    if features.device.type == "mps":  # it knows no float64
        features, reference = features.cpu(), reference.cpu()
    # Strictly inside, by more than the rounding of a distance: else chance decides about copies of
    # data, which lie on the edges of other data's balls.
    edges = _squared_radii(reference, neighbours) * (1 - 1e-9)
    inside = 0
    covered = torch.zeros(len(reference), dtype=torch.bool, device=edges.device)
    for rows, _, tile in squared_distance_tiles(reference, features):
        within = tile < edges[rows, None]
        inside += int(within.sum())
        covered[rows] |= within.any(1)
    density = inside / (neighbours * len(features))
    return DensityCoverage(density, float(covered.double().mean()))


def _squared_radii(reference: Tensor, neighbours: int) -> Tensor:
    """Squared distance of each row's k-th neighbour among the other rows, [M] float64."""
    shape = (len(reference), neighbours)
    least = torch.full(shape, torch.inf, dtype=torch.float64, device=reference.device)
    own = torch.arange(len(reference), device=reference.device)
    for rows, _, tile in squared_distance_tiles(reference, reference, exclude=own):
        both = torch.cat([least[rows], tile], 1)
        least[rows] = both.topk(neighbours, dim=1, largest=False).values
    return least.amax(1)


def _checked(features: Tensor, reference: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    if neighbours < 1:
        raise ValueError(f"expected at least 1 neighbour, got {neighbours}")
    return as_feature_pair(features, reference, at_least=neighbours + 1)
