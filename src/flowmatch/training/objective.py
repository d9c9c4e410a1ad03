"""Flow and loss as one module."""

from __future__ import annotations

from torch import Tensor, nn

from flowmatch.flow import Cond, Flow
from flowmatch.losses import Draws, FlowMatching, SampleLosses


class Objective(nn.Module):
    """Flow, loss and what the loss learns as one module, so that data-parallel wrappers see a plain
    forward pass.
    """

    def __init__(self, flow: Flow, loss: FlowMatching) -> None:
        super().__init__()
        self.flow = flow
        self.loss = loss
        self.learned = loss.build()

    def forward(self, x1: Tensor, cond: Cond | None, draws: Draws) -> tuple[Tensor, SampleLosses]:
        """The mean objective, and without gradients what it is the mean of."""
        losses = self.loss.drawn(self.flow, x1, cond, draws=draws, learned=self.learned)
        return losses.objective.mean(), losses._replace(objective=losses.objective.detach())
