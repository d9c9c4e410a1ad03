"""The Fréchet distance of features (FID where they are Inception's), and its floor."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmatch.metrics.moments import Moments, check_same_dims
from flowmatch.metrics.rows import SLAB
from flowmatch.randomness import keyed_generator


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance between Gaussians of the same moments.

        d = ||m_a - m_b||^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))

    The same number as torch-fidelity's, since its function is what computes it. Its rounding error
    is about 1e-8 of the traces for covariances of full rank, and may make the distance of a set
    from itself slightly negative. A finite sample raises the distance: see `frechet_floor`.

    Args:
        a, b: moments of at least two rows each, in the same D features.
    Returns:
        The distance, in squared units of the features.
    Raises:
        ValueError: different numbers of features, or fewer than two rows.
    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    check_same_dims(a, b)
    first, second = (
        {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()} for moments in (a, b)
    )
    return float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


def frechet_floor(reference: Moments, count: int, *, draws: int = 1) -> float:
    """The Fréchet distance that a perfect model would get from `count` samples.

        E d(moments of x_1 ... x_count, reference),   x_i ~ N(reference.mean, reference.covariance)

    A finite sample never has the moments of its law, so no model can be told from a perfect one
    below this number. It falls like 1 / count; for count >> D and the unit covariance it is
    (D + D (D + 1) / 4) / count.

    Args:
        reference: moments of at least two rows.
        count: samples that a model is judged by, at least 2.
        draws: samples of that size to average over, at least 1. In many dimensions one is enough.
    Returns:
        The mean distance, in squared units of the features; the same at every call.
    Raises:
        ValueError: `count` below 2, `draws` below 1, or a reference of fewer than two rows.
    Source: Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score" (the bias).
    """
    if count < 2 or draws < 1:
        raise ValueError(
            "the floor needs a count of at least 2 and at least 1 draw, got"
            f" count={count} and draws={draws}"
        )
    # The distance survives a rotation and a shift: the reference's own axes spare a product of
    # [count, D] and [D, D].
    variances = torch.linalg.eigvalsh(reference.covariance).clamp(min=0)
    law = Moments(2, torch.zeros_like(variances), torch.diag(variances))
    distances = [frechet_distance(_sample(variances, count, draw), law) for draw in range(draws)]
    return sum(distances) / draws


def _sample(variances: Tensor, count: int, draw: int) -> Moments:
    """Moments of `count` samples of N(0, diag(variances))."""
    generator = keyed_generator("frechet_floor", draw)
    moments = Moments.zeros(len(variances))
    batch = max(1, SLAB // len(variances))
    for start in range(0, count, batch):
        rows = min(batch, count - start)
        normal = torch.randn(rows, len(variances), generator=generator, dtype=torch.float64)
        moments.add(normal * variances.sqrt())
    return moments
