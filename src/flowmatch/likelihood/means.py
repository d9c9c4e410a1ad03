"""The mean log-density of a data set, with both its uncertainties."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Mean(NamedTuple):
    """A mean over samples, and what it is uncertain by."""

    mean: float
    standard_error: float
    """From the choice of samples (and whatever else varies between them, the probes too); NaN for
    a single sample."""
    probe_error: float
    """The part that the probes alone cause: 0 where exact, NaN with one probe a sample."""

    def scaled(self, factor: float, offset: float = 0.0) -> Mean:
        """The mean of `factor * value + offset`."""
        size = abs(factor)
        errors = size * self.standard_error, size * self.probe_error
        return Mean(factor * self.mean + offset, *errors)


def mean_with_errors(nats: Tensor, error: Tensor) -> Mean:
    """Mean over samples whose probes are independent.

        standard error = std(nats) / sqrt(N),   probe error = sqrt(sum_i error_i^2) / N

    Args:
        nats: log-densities, [N].
        error: each one's standard error from its probes, [N]; see `LogProb`.
    """
    count = len(nats)
    nats, error = nats.double(), error.double()
    spread = float(nats.std()) / math.sqrt(count) if count > 1 else math.nan
    return Mean(float(nats.mean()), spread, float(error.square().sum().sqrt()) / count)
