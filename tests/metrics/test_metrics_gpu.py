"""Metrics of tensors on a GPU are those of the same tensors on the CPU."""

import pytest
import torch

from flowmatch import metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    "metric",
    [
        metrics.kernel_distance,
        metrics.precision_recall,
        metrics.density_coverage,
        metrics.nearest,
        metrics.memorisation,
        metrics.wasserstein2,
        metrics.sliced_wasserstein2,
        metrics.mmd,
        metrics.energy_distance,
        metrics.classifier_two_sample,
        lambda x, y: metrics.inception_score(x),
        lambda x, y: metrics.frechet_distance(metrics.Moments.of(x), metrics.Moments.of(y)),
        lambda x, y: metrics.curvature(torch.stack([x, y, x + y]), torch.arange(3.0)),
    ],
)
def test_the_gpu_changes_nothing(metric):
    x, y = torch.randn(2, 300, 5, dtype=torch.float64)
    here, there = metric(x, y), metric(x.cuda(), y.cuda())
    torch.testing.assert_close(there, here, check_device=False)
