"""Numbers that explain a loss: gradients against t, bent paths, pixels out of range."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowmatch.data import Dataset
from flowmatch.flow import Cond, Flow
from flowmatch.losses import FlowMatching
from flowmatch.metrics import path_energy
from flowmatch.randomness import Rows
from flowmatch.solvers import GridSolver, Solver, TimeField
from flowmatch.tensors import batch_time
from flowmatch.training.bins import centres

_MOST_SAMPLES = 64


class Probe(NamedTuple):
    """A fixed batch of training data with its source noise, the same whenever it is looked at."""

    x1: Tensor
    """The first samples of the data set, not augmented, [B, *D]."""
    noise: Tensor
    """Source samples before the coupling, [B, *D]."""
    cond: Cond | None
    """The samples' own conditions."""

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        batch: int,
        *,
        known: Collection[str],
        seed: int,
        device: torch.device,
    ) -> Probe:
        """The first `batch` samples, at most 64, on `device`, with noise that follows from `seed`.

        Of their conditions those come along whose names the network knows.
        """
        count = min(batch, _MOST_SAMPLES, len(dataset))
        plain = dataset.plain(torch.arange(count)).to(device)
        rows = Rows((seed, "probe"), 0, count)
        noise = rows.draw(dataset.shape, law="normal").to(device)
        cond = {name: value for name, value in plain.cond.items() if name in known}
        return cls(plain.x1, noise, cond or None)


def gradient_norms(
    flow: Flow,
    loss: FlowMatching,
    probe: Probe,
    *,
    rows: int,
    scale: float = 1.0,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> list[float]:
    """Norm of the gradient of the mean loss at t = 0.05, 0.15, ..., 0.95.

        || d/dtheta mean_i loss(x1_i, x0_i, t) ||_2,   in evaluation mode

    Nothing of the training is touched: neither `.grad`, nor the hooks of data-parallel wrappers,
    nor a random generator, nor the mode of a layer.

    Args:
        flow: with its weights as trained.
        loss: the objective.
        probe: data and noise.
        rows: how many samples are computed at once, which is a matter of memory.
        scale: the loss is multiplied by it and the norm divided, so that fp16 does not underflow.
        autocast: the precision of training.
    Returns:
        Ten numbers.
    """
    x0 = loss.coupling(probe.noise, probe.x1)
    parameters = [p for p in flow.parameters() if p.requires_grad]
    norms = []
    with torch.enable_grad(), evaluation_mode(flow):
        for t in centres():
            total = [torch.zeros_like(p) for p in parameters]
            for start in range(0, len(x0), rows):
                part = slice(start, start + rows)
                cond = {k: v[part] for k, v in probe.cond.items()} if probe.cond else None
                time = batch_time(t, x0[part])
                with autocast():
                    losses = loss.per_sample(flow, x0[part], probe.x1[part], time, cond)
                gradient = torch.autograd.grad(
                    losses.sum() * (scale / len(x0)),
                    parameters,
                    allow_unused=True,
                    materialize_grads=True,
                )
                torch._foreach_add_(total, gradient)
            norms.append(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(total))))
    return [float(n) / scale for n in torch.stack(norms).tolist()]


class Walked(NamedTuple):
    """Where sampling led, and how straight it went there."""

    x1: Tensor
    """The samples, [B, *D]."""
    curvature: float | None
    """The share of the path energy that straight paths at constant speed would save, in [0, 1]."""


@torch.no_grad()
def walk(f: TimeField, x0: Tensor, solver: Solver) -> Walked:
    """Integrate `f` from `x0` [B, *D] at t=0 to 1, and measure the curvature on the way.

        curvature = 1 - E |x1 - x0|^2 / E sum_i |x_{i+1} - x_i|^2 / h_i

    It is `metrics.curvature` of the trajectory, of which no more than three states are kept. None
    where a state is not finite, with an adaptive solver, whose samples each have their own times,
    and with a stochastic one, whose paths are rough.
    """
    measured = isinstance(solver, GridSolver) and not solver.stochastic
    energy, t, x = 0.0, 0.0, x0
    for s, after in solver.trajectory(f, x0):
        measured = measured and bool(after.isfinite().all())
        if measured:
            times = torch.tensor([t, s], dtype=torch.float64)
            energy += path_energy(torch.stack([x, after]), times)
        t, x = s, after
    if not measured:
        return Walked(x, None)
    chord = path_energy(torch.stack([x0, x]), torch.tensor([0.0, 1.0]))
    # rounding may put a straight path a hair below 0
    return Walked(x, max(1 - chord / energy, 0.0) if energy else 0.0)


def clip_share(images: Tensor) -> float:
    """The share of the values of images that lie outside [-1, 1] by more than 1/255."""
    return float((images.abs() > 1 + 1 / 255).float().mean())


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode for a while; each of its layers gets its own mode back."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
