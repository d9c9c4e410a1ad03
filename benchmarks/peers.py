"""The same integrations by other projects, each used as its documentation tells its users to.

None of them is a dependency: what is not installed is left out, by name. To install them beside the
project, e.g. into `peers/`, and use them from there:

    pip install --no-deps --target peers flow_matching torchdyn diffusers ...
    PYTHONPATH=peers python benchmarks/sampler.py
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Model = Callable[[Tensor, Tensor], Tensor]
"""`(x [B, *D], time, a 0-d tensor) -> [B, *D]`: a velocity, see `Peer.clock`."""


@dataclass(frozen=True)
class Peer:
    """One method of another project.

    Args:
        project: whose.
        method: its name there, as a reader knows it.
        ours: the kind of our solver that does the same, or the nearest.
        run: `(model, x0, times)` integrates over these times, or over as many of its own.
        clock: "t" asks the model for dx/dt at t; "sigma" for -dx/dt at 1000 (1 - t), as latent
            diffusion models are trained.
        calls: model calls of one integration of so many steps.
        own_times: whether it takes its own times in place of those given.
    """

    project: str
    method: str
    ours: str
    run: Callable[[Model, Tensor, Sequence[float]], Tensor]
    clock: Literal["t", "sigma"] = "t"
    calls: Callable[[int], int] = lambda steps: steps
    own_times: bool = False

    @property
    def name(self) -> str:
        return f"{self.project} {self.method}"


@dataclass(frozen=True)
class AdaptivePeer:
    """One adaptive method: `run(model, x0, tolerance)`, relative and absolute."""

    project: str
    method: str
    ours: str
    run: Callable[[Model, Tensor, float], Tensor]

    @property
    def name(self) -> str:
        return f"{self.project} {self.method}"


def installed() -> tuple[list[Peer], list[AdaptivePeer], list[str]]:
    """The fixed-step methods and the adaptive ones of what is installed; the names of the rest."""
    fixed: list[Peer] = []
    adaptive: list[AdaptivePeer] = []
    missing = []
    for name, find in (
        ("torchdiffeq", _torchdiffeq),
        ("flow_matching", _flow_matching),
        ("torchdyn", _torchdyn),
        ("diffusers", _diffusers),
    ):
        try:
            for peer in find():
                (fixed if isinstance(peer, Peer) else adaptive).append(peer)  # type: ignore[arg-type]
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return fixed, adaptive, missing


def _torchdiffeq() -> Iterator[Peer | AdaptivePeer]:
    from torchdiffeq import odeint

    for method, ours, stages in _RUNGE_KUTTA:

        def run(model: Model, x: Tensor, times: Sequence[float], method: str = method) -> Tensor:
            grid = torch.tensor(times, dtype=x.dtype, device=x.device)
            options = {"grid_constructor": lambda f, y, t: grid}
            f = lambda t, x: model(x, t)  # noqa: E731
            return odeint(f, x, grid[[0, -1]], method=method, options=options)[-1]

        yield Peer("torchdiffeq", method, ours, run, calls=lambda n, s=stages: n * s)

    for method in ("bosh3", "dopri5", "dopri8"):

        def adapt(model: Model, x: Tensor, tolerance: float, method: str = method) -> Tensor:
            ends = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
            f = lambda t, x: model(x, t)  # noqa: E731
            return odeint(f, x, ends, method=method, rtol=tolerance, atol=tolerance)[-1]

        yield AdaptivePeer("torchdiffeq", method, method, adapt)


_RUNGE_KUTTA = (
    ("euler", "euler", 1),
    ("midpoint", "midpoint", 2),
    ("heun2", "heun", 2),
    ("heun3", "heun3", 3),
    ("rk4", "rk4", 4),
)


def _flow_matching() -> Iterator[Peer | AdaptivePeer]:
    from flow_matching.solver import ODESolver

    for method, ours, stages in _RUNGE_KUTTA:

        def run(model: Model, x: Tensor, times: Sequence[float], method: str = method) -> Tensor:
            solver = ODESolver(velocity_model=lambda x, t: model(x, t))
            return solver.sample(x_init=x, step_size=1 / (len(times) - 1), method=method)

        calls = lambda n, s=stages: n * s  # noqa: E731
        yield Peer("flow_matching", method, ours, run, calls=calls, own_times=True)

    def adapt(model: Model, x: Tensor, tolerance: float) -> Tensor:
        solver = ODESolver(velocity_model=lambda x, t: model(x, t))
        return solver.sample(
            x_init=x, step_size=None, method="dopri5", atol=tolerance, rtol=tolerance
        )

    yield AdaptivePeer("flow_matching", "dopri5", "dopri5", adapt)


class _TimeFirst(nn.Module):
    """A model as torchdyn takes it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(torch.zeros(()))  # torchdyn prints a complaint where none is

    def forward(self, t: Tensor, x: Tensor, args: object = None) -> Tensor:
        return self.model(x, t)


def _torchdyn() -> Iterator[Peer | AdaptivePeer]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    from torchdyn.core import NeuralODE
    from torchdyn.numerics import odeint

    for method, stages in (("euler", 1), ("midpoint", 2), ("rk4", 4)):

        def whole(model: Model, x: Tensor, times: Sequence[float], method: str = method) -> Tensor:
            node = NeuralODE(_TimeFirst(model), solver=method, sensitivity="adjoint")
            return node.trajectory(x, torch.tensor(times, dtype=x.dtype, device=x.device))[-1]

        def plain(model: Model, x: Tensor, times: Sequence[float], method: str = method) -> Tensor:
            span = torch.tensor(times, dtype=x.dtype, device=x.device)
            return odeint(_TimeFirst(model), x, span, solver=method)[1][-1]

        calls = lambda n, s=stages: n * s  # noqa: E731
        yield Peer("torchdyn", f"NeuralODE {method}", method, whole, calls=calls)
        yield Peer("torchdyn", f"odeint {method}", method, plain, calls=calls)

    def adapt(model: Model, x: Tensor, tolerance: float) -> Tensor:
        ends = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
        f = _TimeFirst(model)
        return odeint(f, x, ends, solver="dopri5", atol=tolerance, rtol=tolerance)[1][-1]

    yield AdaptivePeer("torchdyn", "odeint dopri5", "dopri5", adapt)


def _diffusers() -> Iterator[Peer]:
    import diffusers.schedulers as s

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    schedulers: tuple[tuple[str, str, Any, dict[str, Any]], ...] = (
        ("FlowMatchEuler", "euler", s.FlowMatchEulerDiscreteScheduler, {}),
        ("FlowMatchHeun", "heun", s.FlowMatchHeunDiscreteScheduler, {}),
        ("DPM++ 2M", "dpmpp_2m", s.DPMSolverMultistepScheduler, {"solver_order": 2, **flow}),
        ("DPM++ 3M", "dpmpp_3m", s.DPMSolverMultistepScheduler, {"solver_order": 3, **flow}),
        ("UniPC-2", "unipc", s.UniPCMultistepScheduler, {"solver_order": 2, **flow}),
        ("UniPC-3", "unipc", s.UniPCMultistepScheduler, {"solver_order": 3, **flow}),
        ("DEIS-3", "deis", s.DEISMultistepScheduler, {"solver_order": 3, **flow}),
    )
    for method, ours, kind, options in schedulers:
        scheduler = kind(**options)
        calls = (lambda n: 2 * n - 1) if scheduler.order == 2 else (lambda n: n)
        yield Peer("diffusers", method, ours, _loop(scheduler, None), "sigma", calls, True)
        same = f"{method}, our times"
        yield Peer("diffusers", same, ours, _loop(scheduler, _set_sigmas), "sigma", calls)


def _loop(
    scheduler: Any, set_sigmas: Callable[[Any, Sequence[float]], None] | None
) -> Callable[[Model, Tensor, Sequence[float]], Tensor]:
    """The loop of a diffusers pipeline."""

    def run(model: Model, x: Tensor, times: Sequence[float]) -> Tensor:
        scheduler.set_timesteps(len(times) - 1)
        if set_sigmas is not None:
            set_sigmas(scheduler, times)
        scheduler.set_begin_index(0)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t), t, x, return_dict=False)[0]
        return x

    return run


def _set_sigmas(scheduler: Any, times: Sequence[float]) -> None:
    """Have a scheduler walk exactly over `times`, and tell the model exact times."""
    sigmas = torch.tensor([1 - t for t in times], dtype=torch.float64)
    if "UniPC" in type(scheduler).__name__:
        sigmas = sigmas.clamp(max=1 - 1e-6)  # as it does itself: log(1 - sigma) must be finite
    if "DEIS" in type(scheduler).__name__:
        sigmas = sigmas.clamp(1e-6, 1 - 1e-6)  # it divides by 1 - sigma and takes log(sigma)
    if scheduler.order == 2:  # it asks twice at every time but the first
        inner = sigmas[1:-1].repeat_interleave(2)
        sigmas = torch.cat([sigmas[:1], inner, sigmas[-1:]])
    scheduler.sigmas, scheduler.timesteps = sigmas, 1000 * sigmas[:-1]
