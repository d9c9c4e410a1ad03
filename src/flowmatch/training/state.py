"""The state of a run: all that changes while it trains, and so all that a checkpoint holds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from flowmatch.flow import Flow
from flowmatch.losses import Learned
from flowmatch.training.checkpoint import averages_to_resume, read_state, stored_moments
from flowmatch.training.contents import MODEL, Contents
from flowmatch.training.ema import Averages, Profile
from flowmatch.training.optimizer_state import refuse_another
from flowmatch.training.sharding import is_sharded, like, local, own_of, rows_of, tensors_of, whole
from flowmatch.training.shards import Stored
from flowmatch.training.spikes import SpikeWatch
from flowmatch.training.weights import check_fit


class TrainingState:
    """Weights, averages, optimizer, what the loss learned, and how far the run is.

    Args:
        flow: what is trained.
        averages: of its weights.
        learned: what the loss learns besides, or None.
        optimizer: of both, as Accelerate prepared it.
        watch: what knows the latest losses.
        accelerator: has the loss scaler, if there is one.
    """

    def __init__(
        self,
        flow: Flow,
        averages: Averages,
        learned: Learned | None,
        optimizer: torch.optim.Optimizer,
        watch: SpikeWatch,
        accelerator: Accelerator,
    ) -> None:
        self._flow, self._averages, self._learned = flow, averages, learned
        self._optimizer, self._watch, self._accelerator = optimizer, watch, accelerator
        self._untrained: dict[str, Tensor] | None = _copy(flow.network)
        self._unlearned = _copy(learned) if learned is not None else None
        scaler = accelerator.scaler
        self._unscaled = scaler.state_dict() if scaler is not None else None
        self.step = 0
        self.images = 0
        self.skipped: set[int] = set()
        """Steps whose batches are left out, zero-based."""
        self.overflows = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        """Steps that the loss scaler left out, so far."""

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the weights."""
        return any(is_sharded(p) for p in self._flow.parameters())

    @property
    def writes(self) -> bool:
        """Whether this process has something that a checkpoint needs."""
        return self.is_sharded or self._accelerator.is_main_process

    @property
    def left_out(self) -> int:
        """How many steps were left out so far."""
        return sum(step < self.step for step in self.skipped) + int(self.overflows)

    def contents(self, config_yaml: str) -> Contents:
        """A copy of what a checkpoint holds: all of it, and the run's config.

        Of a sharded run, each process copies its own rows; all of them are to call it.
        """
        scaler = self._accelerator.scaler
        optimizer, moments = _without_shards(self._optimizer.state_dict())
        learned = self._learned.state_dict() if self._learned is not None else None
        state = {
            "step": self.step,
            "images": self.images,
            "optimizer": copied(optimizer),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "learned": copied(tree_map_only(Tensor, whole, learned)),
            "skipped": sorted(self.skipped),
            "overflows": int(self.overflows),
            "losses": self._watch.losses,
        }
        network, averages = self._flow.network, self._averages.networks
        if not self.is_sharded:
            return Contents(
                network=tensors_of(network),
                averages={profile: tensors_of(average) for profile, average in averages.items()},
                state=state,
                config_yaml=config_yaml,
            )
        own = functools.partial(_own_rows, with_whole=self._accelerator.is_main_process)
        sharded = {**network.state_dict(), **moments}
        return Contents(
            network=own(network.state_dict()),
            averages={profile: own(average.state_dict()) for profile, average in averages.items()},
            state={**state, "shards": self._accelerator.num_processes},
            config_yaml=config_yaml,
            moments=own(moments),
            starts={name: rows_of(t).start for name, t in sharded.items() if is_sharded(t)},
        )

    def advance(self, images: int) -> None:
        """One step is done, or left out."""
        self.step += 1
        self.images += images

    def take_up(self, checkpoint: Path, profiles: tuple[Profile, ...]) -> None:
        """Become what a checkpoint holds.

        Args:
            checkpoint: its folder.
            profiles: the run's averages, of which an older checkpoint may lack some.
        Raises:
            ValueError: it is of another network, optimizer or loss.
        """
        state = read_state(checkpoint)
        self._clear()
        files = averages_to_resume(checkpoint, profiles)
        networks = (self._flow.network, *self._averages.networks.values())
        for network, path in zip(networks, (checkpoint / MODEL, *files), strict=True):
            _fill(network, Stored(path))
        self.step, self.images = state["step"], state["images"]
        self.skipped |= set(state.get("skipped", ()))
        self.overflows.fill_(state.get("overflows", 0))
        self._watch.restore(state.get("losses", ()))
        if state["optimizer"] is not None:  # an imported model brings weights alone
            self._load_learned(state.get("learned"), checkpoint)
            self._load_optimizer(state["optimizer"], stored_moments(checkpoint, state))
        if state["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._untrained = None

    def start_anew(self) -> None:
        """Become what it was before the first step; only until a checkpoint is there."""
        assert self._untrained is not None
        for copy in (self._flow.network, *self._averages.networks.values()):
            copy.load_state_dict(self._untrained)
        self._clear()
        self.step = self.images = 0

    def is_saved(self) -> None:
        """A checkpoint holds it: the untrained weights are needed no more."""
        self._untrained = None

    @property
    def can_start_anew(self) -> bool:
        """Whether the untrained weights are still at hand."""
        return self._untrained is not None

    def _clear(self) -> None:
        """Forget all but the weights: what a checkpoint does not hold must not outlive it."""
        self._optimizer.state.clear()
        if self._learned is not None and self._unlearned is not None:
            self._learned.load_state_dict(self._unlearned)
        if self._unscaled is not None:
            self._accelerator.scaler.load_state_dict(self._unscaled)
        self.overflows.zero_()
        self._watch.restore(())

    def _load_learned(self, state: Mapping[str, Tensor] | None, checkpoint: Path) -> None:
        """Take up what the loss has learned.

        Raises:
            ValueError: this run's loss learns something else.
        """
        own = self._learned.state_dict() if self._learned is not None else {}
        if _shapes(own) != _shapes(state or {}):
            raise ValueError(
                f"the loss of {checkpoint} has learned {_shapes(state or {}) or 'nothing'}, this"
                f" run's learns {_shapes(own) or 'nothing'}; go on with the loss.weighting and"
                " loss.time that its config.yaml names, or start a new run"
            )
        if self._learned is not None and state is not None:
            _copy_rows(self._learned, state)

    def _load_optimizer(self, state: dict[str, Any], moments: Stored | None) -> None:
        """Take up its moments, from wherever they lie, as far as this process has the weights."""
        refuse_another(self._optimizer, state)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for index, values in state["state"].items():
            p = parameters[index]
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    values[name] = like(p, own_of(value, p))
        for key in moments.shapes if moments is not None else ():
            index, _, name = key.partition(".")
            p = parameters[int(index)]
            assert moments is not None
            state["state"].setdefault(int(index), {})[name] = like(p, moments.read(key, rows_of(p)))
        settings = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self._optimizer.param_groups
        ]
        self._optimizer.load_state_dict(state)
        # the moments are the checkpoint's, the settings this run's: they may have been changed
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own)


def copied(node: Any) -> Any:
    """Nested mappings and lists with copies of their tensors, on the CPU."""
    return tree_map_only(Tensor, lambda value: value.detach().to("cpu", copy=True), node)


def _without_shards(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's state without its sharded tensors, and these by "INDEX.NAME"."""
    values = {
        index: {name: value for name, value in own.items() if not _is_shard(value)}
        for index, own in state["state"].items()
    }
    shards = {
        f"{index}.{name}": value
        for index, own in state["state"].items()
        for name, value in own.items()
        if _is_shard(value)
    }
    return {**state, "state": values}, shards


def _is_shard(value: Any) -> bool:
    return isinstance(value, Tensor) and is_sharded(value)


def _own_rows(state: Mapping[str, Tensor], *, with_whole: bool) -> dict[str, Tensor]:
    """Copies of the rows that this process has, and of what all have if it is to write that."""
    own = {k: local(v) for k, v in state.items() if with_whole or is_sharded(v)}
    copies: dict[str, Tensor] = copied({k: v for k, v in own.items() if v.numel()})
    return copies


def _fill(network: nn.Module, stored: Stored) -> None:
    """Take up stored weights, as far as this process has them.

    Raises:
        ValueError: they are of another network.
    """
    check_fit(network, stored.shapes, stored.path)
    for name, value in network.state_dict().items():
        local(value).copy_(stored.read(name, rows_of(value)))


def _copy_rows(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take up whole tensors, as far as this process has them."""
    for name, value in module.state_dict().items():
        local(value).copy_(own_of(state[name], value))


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}
