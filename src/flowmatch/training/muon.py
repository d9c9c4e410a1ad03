"""Muon for the matrices of a network, AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowmatch.component import Component
from flowmatch.networks.magnitude import MPConv, MPLinear
from flowmatch.training.adamw import check_adamw, have_fused_kernel
from flowmatch.training.optimizer_state import guard_loading
from flowmatch.training.sharding import like, local, own_of, whole

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of the quintic that pulls singular values towards 1.  Source: Jordan et al. 2024."""
_ITERATIONS = 5
_AT_ONCE = 2**24
"""Values of the matrices that are orthogonalised at once."""

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, MPLinear, MPConv)


@dataclass(frozen=True, kw_only=True)
class Muon(Component):
    """Momentum whose matrices are orthogonalised, beside AdamW for what is no matrix.

        B <- momentum B + (1 - momentum) G
        W <- W - lr (0.2 sqrt(max(m, n)) U V^T + weight_decay W)

    for a weight W [m, n] with gradient G, where U S V^T is the singular value decomposition of B,
    or with `nesterov` of momentum B + (1 - momentum) G, for which `orthogonalised` stands in. The
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
    """Muon and `torch.optim.AdamW`, each over its group, as one optimizer.

    Groups and state are those of the network's own parameters, so whatever clips, scales, saves or
    loads sees an ordinary optimizer. The kernels' updates are those of `torch.optim.Muon`, which
    takes matrices one by one, in launches whose number a GPU waits for; here matrices of one shape
    are orthogonalised together.

    Orthogonalising takes whole matrices. Those that are sharded are gathered for it, and every
    process computes the same updates and takes its rows.

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
        adamw = torch.optim.AdamW(
            [{"params": []}],
            lr=lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=have_fused_kernel(others),
        )
        muon = {"lr": lr, "momentum": config.momentum, "nesterov": config.nesterov}
        muon["weight_decay"] = config.weight_decay
        groups = [{**muon, "params": kernels}, {**adamw.defaults, "params": others}]
        super().__init__(groups, defaults={})
        guard_loading(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update what has a gradient; returns the value of `closure`, which is called first."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        kernels, others = self.param_groups
        self._step_kernels(kernels)
        adamw = torch.optim.AdamW([others])
        adamw.state = self.state
        adamw.step()
        return loss

    def _step_kernels(self, group: dict[str, Any]) -> None:
        trained = [p for p in group["params"] if p.grad is not None]
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        if not trained:
            return
        for p in trained:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [local(p.grad) for p in trained]
        momenta = [local(self.state[p]["momentum_buffer"]) for p in trained]
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        ahead = torch._foreach_lerp(grads, momenta, momentum) if group["nesterov"] else momenta
        for some in _of_one_shape(list(zip(trained, ahead, strict=True))):
            matrices = [as_matrix(whole(like(p, rows)), like=p).bfloat16() for p, rows in some]
            m, n = matrices[0].shape
            for (p, _), update in zip(some, orthogonalised(torch.stack(matrices)), strict=True):
                rows = as_matrix(local(p.detach()), like=p)
                rows.mul_(1 - lr * decay)
                rows.add_(own_of(update, p), alpha=-lr * 0.2 * math.sqrt(max(m, n)))


def orthogonalised(matrices: Tensor) -> Tensor:
    """U V^T of each matrix U S V^T [N, m, n], roughly: all singular values but the smallest come to
    between about 0.7 and 1.2.

        X <- a X + (b X X^T + c (X X^T)^2) X,   five times, from X / |X|_F

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


def _of_one_shape(kernels: list[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Kernels whose matrices have one shape, with what goes with each, a few at a time."""
    shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for p, rows in kernels:
        shapes.setdefault((p.shape[0], math.prod(p.shape[1:])), []).append((p, rows))
    for (m, n), alike in shapes.items():
        count = max(_AT_ONCE // (m * n), 1)
        yield from (alike[i : i + count] for i in range(0, len(alike), count))


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
