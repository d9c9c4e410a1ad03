"""The state of an optimizer as a checkpoint brings it."""

from __future__ import annotations

from typing import Any

import torch


def guard_loading(optimizer: torch.optim.Optimizer) -> None:
    """Let `load_state_dict` refuse the state of another optimizer, and lay out what it takes."""
    optimizer.register_load_state_dict_pre_hook(refuse_another)
    optimizer.register_load_state_dict_post_hook(_lay_out)


def refuse_another(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Another kind of optimizer, or the same over other parameters.

    Raises:
        ValueError: the groups have other sizes.
    """
    saved, own = (
        [len(group["params"]) for group in groups]
        for groups in (state["param_groups"], optimizer.param_groups)
    )
    if saved != own:
        raise ValueError(
            f"the checkpoint's optimizer has groups of {saved} parameters, this run's of {own}; go"
            " on with the train.optimizer that the checkpoint's config.yaml names, or start a new"
            " run"
        )


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Lay moments out in memory like their parameters, for a run that changed its format.

    Fused kernels go through memory, not through indices: they would pair each weight of a
    channels_last kernel with the moments of another weight.
    """
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == p.shape and value.stride() != p.stride():
                state[name] = torch.empty_like(p).copy_(value)
