"""Muon for the matrices of a network, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowmatch.component import Component
from flowmatch.networks.magnitude import MPConv, MPLinear
from flowmatch.training.adamw import check_adamw, have_fused_kernel
from flowmatch.training.optimizer_state import guard_loading
from flowmatch.training.sharding import is_sharded, local, own_of, whole

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, MPLinear, MPConv)


@dataclass(frozen=True, kw_only=True)
class Muon(Component):
    """Momentum whose matrices are orthogonalised, beside AdamW for what is no matrix.

        B <- momentum B + (1 - momentum) G
        W <- W - lr (0.2 sqrt(max(m, n)) U V^T + weight_decay W)

    for a weight W [m, n] with gradient G, where U S V^T is the singular value decomposition of B,
    or with `nesterov` of momentum B + (1 - momentum) G. Five Newton-Schulz iterations in bf16 stand
    in for it: they bring all singular values but the smallest to between about 0.7 and 1.2. The
    factor before U V^T gives an update a root mean square of 0.2, as AdamW's often have, so one
    learning rate and one weight decay serve both.

    - Muon trains the weights of linear and convolutional layers. A kernel [O, I, ...] counts as a
      matrix [O, I * ...].
    - AdamW trains gains, biases, embedding tables and other bare parameters, grouped convolutions,
      and all of the network's first and last layer.

    Args:
        momentum: decay of the momentum, in [0, 1).
        nesterov: look ahead by one gradient.
        betas, eps: of AdamW, see there.
        weight_decay: of both, per step, times the learning rate.
        first, last: what networks call the layers that take and return the data. Of the modules
            with such a name the outermost are meant. A network of your own needs its own names.
    Raises:
        ValueError: a value is out of its range.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the
        factor is of Liu et al. 2025, "Muon is scalable for LLM training", section 2.2.
    """

    momentum: float = 0.95
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    first: tuple[str, ...] = ("inp", "input_blocks.0", "conv_in", "pyramid.0", "patch_embed")
    last: tuple[str, ...] = ("out", "conv_out", "final.out")
    kind: Literal["muon"] = "muon"

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.eps, self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum lies in [0, 1), got {self.momentum}")

    def build(self, module: nn.Module, lr: float) -> MuonAndAdamW:
        """The optimizer of a module, which already lies on its device.

        Raises:
            ValueError: see `split`.
        """
        return MuonAndAdamW(*self.split(module), config=self, lr=lr)

    def split(self, module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters that Muon trains, and those that AdamW trains.

        Raises:
            ValueError: no module has a name of `first`, or of `last`, or no layer is between.
        """
        ends = [*_outermost(module, self.first, "first"), *_outermost(module, self.last, "last")]
        at_ends = {p for end in ends for p in end.parameters()}
        kernels = {
            layer.weight
            for layer in module.modules()
            if isinstance(layer, _LAYERS) and getattr(layer, "groups", 1) == 1
        } - at_ends
        if not kernels:
            raise ValueError(
                "muon trains linear and convolutional layers between the first and the last, and"
                " this network has none; use adamw"
            )
        parameters = list(module.parameters())
        others = [p for p in parameters if p not in kernels]
        return [p for p in parameters if p in kernels], others


class MuonAndAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW`, each over its group, as one optimizer.

    Groups and state are those of the network's own parameters, so whatever clips, scales, saves or
    loads sees an ordinary optimizer. What Muon gets are the kernels as matrices, views taken anew
    at each step.

    Orthogonalising takes a whole matrix. One that is sharded is gathered for it, by itself, and
    every process computes the same update and takes its rows.

    Args:
        kernels: weights [O, I, ...] for Muon; the first group.
        others: parameters for AdamW; the second group.
        config: every setting but the learning rate.
        lr: the learning rate of both.
    """

    def __init__(
        self,
        kernels: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        *,
        config: Muon,
        lr: float,
    ) -> None:
        nothing: list[dict[str, Any]] = [{"params": []}]
        muon = torch.optim.Muon(
            nothing,
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(
            nothing,
            lr=lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=have_fused_kernel(others),
        )
        groups = [{**muon.defaults, "params": kernels}, {**adamw.defaults, "params": others}]
        super().__init__(groups, defaults={})
        guard_loading(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update what has a gradient; returns the value of `closure`, which is called first."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        kernels, others = self.param_groups
        moments = {}
        for p in kernels["params"]:
            if p.grad is not None:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum_buffer"]
                if is_sharded(p):
                    _update_rows(p, momentum, kernels)
                    continue
                matrix = as_matrix(p.detach(), like=p)
                matrix.grad = as_matrix(p.grad, like=p)
                moments[matrix] = {"momentum_buffer": as_matrix(momentum, like=p)}
        muon = torch.optim.Muon([{**kernels, "params": [*moments]}])
        muon.state.update(moments)
        muon.step()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        adamw = torch.optim.AdamW([others])
        adamw.state = self.state
        adamw.step()
        return loss


def _update_rows(p: Tensor, momentum: Tensor, settings: dict[str, Any]) -> None:
    """Move the rows of a sharded kernel; every process has a part in it."""
    assert p.grad is not None
    decay = settings["momentum"]
    momentum.lerp_(p.grad, 1 - decay)
    direction = p.grad.lerp(momentum, decay) if settings["nesterov"] else momentum
    matrix = torch.zeros_like(as_matrix(gathered := whole(direction), like=gathered))
    matrix.grad = as_matrix(gathered, like=gathered)
    still = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    torch.optim.Muon([{**settings, **still, "params": [matrix]}]).step()  # type: ignore[no-untyped-call]
    rows = local(p)
    rows.mul_(1 - settings["lr"] * settings["weight_decay"])
    rows.add_(own_of(matrix, p).view_as(rows))


def as_matrix(kernel: Tensor, *, like: Tensor) -> Tensor:
    """A kernel [O, I, ...] as [O, I * ...], with the columns in the order of `like`'s memory.

    Any order would do, since orthogonalising commutes with a permutation of columns; this one needs
    no copy of a kernel that is laid out like `like`.
    """
    order = sorted(range(1, like.ndim), key=like.stride, reverse=True)
    return kernel.permute(0, *order).flatten(1)


def _outermost(module: nn.Module, names: Iterable[str], which: str) -> list[nn.Module]:
    """The modules with one of these names that lie the fewest levels deep."""
    found = [
        (path.count(".") - name.count("."), inner)
        for path, inner in module.named_modules()
        for name in names
        if f".{path}".endswith(f".{name}")
    ]
    if not found:
        raise ValueError(
            f"muon leaves the network's {which} layer to AdamW, but no module is named"
            f" {' or '.join(names)}; name it in train.optimizer.{which}"
        )
    least = min(depth for depth, _ in found)
    return [inner for depth, inner in found if depth == least]
