"""The state of a run: all that changes while it trains, and so all that a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flowmatch.flow import Flow
from flowmatch.losses import Learned
from flowmatch.training.checkpoint import MODEL, averages_to_resume, read_state
from flowmatch.training.ema import Averages, Profile
from flowmatch.training.weights import fit_weights, read_weights


class TrainingState:
    """Weights, averages, optimizer, what the loss learned, and how far the run is.

    Args:
        flow: what is trained.
        averages: of its weights.
        learned: what the loss learns besides, or None.
        optimizer: of both, as Accelerate prepared it.
        accelerator: has the loss scaler, if there is one.
    """

    def __init__(
        self,
        flow: Flow,
        averages: Averages,
        learned: Learned | None,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
    ) -> None:
        self._flow, self._averages, self._learned = flow, averages, learned
        self._optimizer, self._accelerator = optimizer, accelerator
        self._untrained: list[dict[str, Tensor]] | None = _copies(flow, learned)
        self.step = 0
        self.images = 0
        self.skipped: set[int] = set()
        """Steps whose batches are left out, zero-based."""
        self.overflows = 0
        """Steps that the loss scaler left out, so far."""

    def contents(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        scaler = self._accelerator.scaler
        return {
            "network": self._flow.network,
            "averages": self._averages.networks,
            "state": {
                "step": self.step,
                "images": self.images,
                "optimizer": self._optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "learned": self._learned.state_dict() if self._learned is not None else None,
                "skipped": sorted(self.skipped),
                "overflows": self.overflows,
            },
        }

    def advance(self, images: int) -> None:
        """One step is done, or left out."""
        self.step += 1
        self.images += images

    def take_up(self, checkpoint: Path, profiles: tuple[Profile, ...]) -> None:
        """Become what a checkpoint holds.

        Args:
            checkpoint: its folder.
            profiles: the run's averages, of which an older checkpoint may lack some.
        """
        state = read_state(checkpoint)
        files = averages_to_resume(checkpoint, profiles)
        networks = (self._flow.network, *self._averages.networks.values())
        for network, path in zip(networks, (checkpoint / MODEL, *files), strict=True):
            fit_weights(network, read_weights(path), path)
        self.step, self.images = state["step"], state["images"]
        self.skipped, self.overflows = set(state.get("skipped", ())), state.get("overflows", 0)
        if self._learned is not None and state.get("learned") is not None:
            self._learned.load_state_dict(state["learned"])
        if state["optimizer"] is not None:  # an imported model brings weights alone
            self._load_optimizer(state["optimizer"])
        if state["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._untrained = None

    def start_anew(self) -> None:
        """Become what it was before the first step; only until a checkpoint is there."""
        assert self._untrained is not None
        network, *learned = self._untrained
        for copy in (self._flow.network, *self._averages.networks.values()):
            copy.load_state_dict(network)
        if self._learned is not None:
            self._learned.load_state_dict(learned[0])
        self._optimizer.state.clear()
        self.step = self.images = self.overflows = 0
        self.skipped.clear()

    def is_saved(self) -> None:
        """A checkpoint holds it: the untrained weights are needed no more."""
        self._untrained = None

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        settings = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self._optimizer.param_groups
        ]
        self._optimizer.load_state_dict(state)
        # the moments are the checkpoint's, the settings this run's: they may have been changed
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own)


def _copies(flow: Flow, learned: Learned | None) -> list[dict[str, Tensor]]:
    modules = [flow.network] if learned is None else [flow.network, learned]
    return [{k: v.detach().clone() for k, v in m.state_dict().items()} for m in modules]
