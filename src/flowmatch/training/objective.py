"""Flow and loss as one module."""

from __future__ import annotations

from torch import Tensor, nn

from flowmatch.flow import Cond, Flow
from flowmatch.losses import Draws, FlowMatching


class Objective(nn.Module):
    """Flow and loss as one module, so that data-parallel wrappers see a plain forward pass."""

    def __init__(self, flow: Flow, loss: FlowMatching) -> None:
        super().__init__()
        self.flow = flow
        self.loss = loss

    def forward(self, x1: Tensor, cond: Cond | None, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss, and without gradients each sample's own loss [B] and time [B]."""
        losses, t = self.loss.drawn(self.flow, x1, cond, draws=draws)
        return losses.mean(), losses.detach(), t
