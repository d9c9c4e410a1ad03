"""A running sum along a trajectory, kept from one evaluation to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmatch.tensors import expand_like


class Momentum:
    """`m_k = d_k + momentum * m_(k-1)` along increasing time, each sample on its own clock.

    `m_(k-1)` belongs to an evaluation at a strictly earlier time. At the time of the last
    evaluation, `m_k` is found anew from the same `m_(k-1)`: Heun's method evaluates the end of a
    step and the start of the next at one time, and that is one step of the sum. At an earlier time,
    or for a batch of another shape, dtype or device, a new trajectory begins, with `m = d`. So the
    sum is that of a trajectory forward in time; backward there is none.

    Args:
        momentum: the factor; negative pushes away from earlier directions.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._time: Tensor | None = None
        self._sum = self._before = torch.zeros(0)

    def add(self, d: Tensor, t: Tensor) -> Tensor:
        """The sum at times `t` [B] after adding `d` [B, *D]: [B, *D].

        What is kept is detached: a gradient sees the earlier terms as constants.
        """
        last = self._time
        if last is None or not (_alike(d, self._sum) and _alike(t, last)):
            before = torch.zeros_like(d)
        else:
            later, same = expand_like(t > last, d), expand_like(t == last, d)
            before = torch.where(later, self._sum, torch.where(same, self._before, 0))
        total = d + self.momentum * before
        self._time, self._sum, self._before = t.detach().clone(), total.detach(), before
        return total


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
