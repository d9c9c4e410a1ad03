"""Sharding: each process keeps its rows of every weight, gradient, moment and average (FSDP2).

Applied to the objective from outside; networks know nothing of it. A block's weights are gathered
before it computes and let go afterwards, in the forward and in the backward pass, and its gradients
are summed into the shards as soon as they are there: in every part of a batch, as gradients that
wait for the last part would be kept whole. Weights stay float32 and are gathered as such. Autocast
alone decides what is computed in bf16: a `MixedPrecisionPolicy` would round embeddings and gains.

Source: Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel";
Rajbhandari et al. 2020, "ZeRO", stage 3.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TypeGuard

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flowmatch.flow import Flow
from flowmatch.networks.magnitude import MPWeight
from flowmatch.training.background import Writers
from flowmatch.training.shards import EVERY_ROW

if TYPE_CHECKING:  # else imported where it is used: it costs every command 0.6 seconds
    from torch.distributed.tensor import DTensor

Sharding = Literal["none", "fsdp"]


def mesh_of(sharding: Sharding, network: nn.Module, accelerator: Accelerator) -> DeviceMesh | None:
    """The processes that share every tensor; None where each has all: a single one always does.

    Raises:
        ValueError: the network cannot be sharded.
    """
    if sharding == "none" or accelerator.num_processes == 1:
        return None
    _check_shardable(network)
    assert accelerator.scaler is None  # the settings refuse fp16
    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def prepare(objective: nn.Module, mesh: DeviceMesh | None, accelerator: Accelerator) -> nn.Module:
    """The objective in the precision of the accelerator, for several processes: by DDP without a
    mesh, else sharded where it stands.
    """
    if mesh is None:
        whole: nn.Module = accelerator.prepare(objective)
        return whole
    from torch.distributed.fsdp import fully_shard

    accelerator.prepare_model(objective, evaluation_mode=True)  # its precision alone
    for unit in _units(objective):
        fully_shard(unit, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


def divide(module: nn.Module, mesh: DeviceMesh) -> None:
    """Keep of each parameter the rows that `prepare` leaves to this process, and no more."""
    from torch.distributed.tensor import Shard, distribute_tensor

    for name, p in list(module.named_parameters()):
        own = distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None)
        _put(module, name, nn.Parameter(_without_the_rest(own), requires_grad=p.requires_grad))


def writers_of(mesh: DeviceMesh | None) -> Writers | None:
    """Who writes a checkpoint: all that share its tensors, or the one that calls."""
    if mesh is None:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # this process is in it
    return Writers(group)


def is_sharded(t: Tensor) -> TypeGuard[DTensor]:
    """Whether this process has only some rows of a tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # what was never imported made none
    return module is not None and isinstance(t, module.DTensor)


def local(t: Tensor) -> Tensor:
    """The rows of a tensor that this process has: all, where it is not sharded."""
    return t.to_local() if is_sharded(t) else t


def whole(t: Tensor) -> Tensor:
    """All of a tensor; all processes ask for it together."""
    return t.full_tensor() if is_sharded(t) else t


def rows_of(t: Tensor) -> slice:
    """Which rows of a tensor this process has."""
    if not is_sharded(t):
        return EVERY_ROW
    mesh = t.device_mesh
    size = -(-t.shape[0] // mesh.size())  # as torch.chunk deals them
    start = min(mesh.get_local_rank() * size, t.shape[0])
    stop = min(start + size, t.shape[0])
    assert stop - start == local(t).shape[0]
    return slice(start, stop)


def own_of(t: Tensor, p: Tensor) -> Tensor:
    """Of a whole tensor, the rows that this process has of another."""
    return t[rows_of(p)] if is_sharded(p) else t


def like(p: Tensor, rows: Tensor) -> Tensor:
    """A tensor that is sharded as another, from the rows that this process has of it."""
    return _from_rows(rows.to(p.device), p) if is_sharded(p) else rows


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the whole state of a module on the CPU, as it is written."""
    return {
        name: whole(value).detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }


@contextlib.contextmanager
def gathered(flow: Flow, *, into: Flow | None = None) -> Iterator[Flow]:
    """A flow with its whole weights, for a while; all processes ask for it together.

    What is computed with it needs no other process, so that one may do it alone.

    Args:
        flow: is given back as it is where it is not sharded.
        into: another flow of the same network, which takes the weights meanwhile; one that is
            trained cannot take them itself.
    """
    parameters = dict(flow.named_parameters())
    if not any(is_sharded(p) for p in parameters.values()):
        yield flow
        return
    vessel = into or flow
    own = dict(vessel.named_parameters())
    try:
        for name, p in parameters.items():
            _put(vessel, name, nn.Parameter(whole(p.detach()), requires_grad=p.requires_grad))
        yield vessel
    finally:
        for name, p in own.items():
            _put(vessel, name, p)


def all_finite(tensors: Iterable[Tensor], accelerator: Accelerator) -> bool:
    """Whether every number is finite, in all processes."""
    norms = torch.stack(torch._foreach_norm([local(t.detach()) for t in tensors]))
    bad = (~norms.isfinite().all()).float()
    return float(accelerator.reduce(bad, "sum")) == 0


def _units(objective: nn.Module) -> list[nn.Module]:
    """What is gathered at once, inner ones first: the blocks in a network's plain rows."""
    rows = [row for row in objective.modules() if type(row) is nn.ModuleList]
    units = [unit for row in rows for unit in row if any(True for _ in unit.parameters())]
    return units[::-1]


def _check_shardable(network: nn.Module) -> None:
    """Refuse numbers without rows, and weights that are rewritten where they are gathered."""
    bare = [name for name, p in network.named_parameters() if p.ndim == 0]
    if bare or any(isinstance(module, MPWeight) for module in network.modules()):
        raise ValueError(
            "train.sharding=fsdp cannot shard this network: edm2 rewrites its weights in each"
            f" forward pass, and a parameter without dimensions ({', '.join(bare[:2]) or 'none'})"
            " has no rows; use train.sharding=none"
        )


def _without_the_rest(own: DTensor) -> DTensor:
    """The same rows in memory of their own: a view would keep the whole tensor."""
    return _from_rows(own.to_local().clone(memory_format=torch.contiguous_format), own)


def _from_rows(rows: Tensor, p: DTensor) -> DTensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(rows, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())


def _put(module: nn.Module, name: str, p: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, p)
