"""The density that a flow starts from."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from flowmatch.tensors import sum_flat

Prior = Callable[[Tensor], Tensor]
"""Log-density of the source in nats: `x0 [B, *D] -> [B]`."""


def standard_normal(x0: Tensor) -> Tensor:
    """Log-density of N(0, 1) in each coordinate: `-|x0|^2 / 2 - dims log(2 pi) / 2`.

    Args:
        x0: [B, *D].
    Returns:
        Nats, [B].
    """
    dims = x0[0].numel()
    return -0.5 * sum_flat(x0**2) - 0.5 * dims * math.log(2 * math.pi)
