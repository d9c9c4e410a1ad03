"""How much a flow moves, and how straight: numbers of a trajectory."""

from __future__ import annotations

import torch
from torch import Tensor


def path_energy(states: Tensor, times: Tensor) -> float:
    """The kinetic energy of the paths, as that of the polygons through their states.

        E int |dx/dt|^2 dt,   by finite differences: mean over paths of sum_i |d_i|^2 / h_i

    where d_i is the difference of two states and h_i of their times. Between two laws it is never
    below their squared 2-Wasserstein distance (Benamou & Brenier 2000), for times from 0 to 1. The
    polygon is shorter than the curve: few steps make the energy too small.

    Args:
        states: of B samples at S + 1 times, [S + 1, B, *D] with S at least 1.
        times: [S + 1], strictly increasing or strictly decreasing, from one end to the other.
    Returns:
        The energy, summed over coordinates: in squared units of x over units of time.
    Raises:
        ValueError: shapes that do not fit, times that do not follow one another, or NaN.
    """
    return _measure(states, times)[0]


def straightness(states: Tensor, times: Tensor) -> float:
    """How far the velocity of the paths is from that of their chords, 0 where they are straight.

        S = E int |(x1 - x0) / T - dx/dt|^2 dt = path_energy - E |x1 - x0|^2 / T

    with T the time between the ends, so that for T = 1 it is S(Z) of the source. A straight path at
    varying speed is not straight in this sense: one Euler step would not walk it.

    Args:
        states: [S + 1, B, *D], as for `path_energy`.
        times: [S + 1], as for `path_energy`.
    Returns:
        The mean over samples, summed over coordinates, in the units of `path_energy`.
    Raises:
        ValueError: as for `path_energy`.
    Source: Liu et al. 2023, "Flow Straight and Fast", S(Z).
    """
    return _measure(states, times)[1]


def curvature(states: Tensor, times: Tensor) -> float:
    """The share of the energy that straight paths at constant speed would save, in [0, 1].

        straightness / path_energy

    0 for straight paths at constant speed, where one Euler step is exact; 1 for paths that return
    to their start. Free of units, so it may be compared between data sets. Paths that do not move
    have 0.

    Args:
        states: [S + 1, B, *D], as for `path_energy`.
        times: [S + 1], as for `path_energy`.
    Raises:
        ValueError: as for `path_energy`.
    """
    energy, bent = _measure(states, times)
    return bent / energy if energy > 0 else 0.0


def _measure(states: Tensor, times: Tensor) -> tuple[float, float]:
    """Path energy and straightness."""
    _check(states, times)
    steps = times.detach().cpu().double().diff().abs()
    chord = _double(states[-1]) - _double(states[0])
    whole = float(steps.sum())
    energy = bent = 0.0
    # step by step, in float64, without a second copy of all the states
    for i, h in enumerate(steps.tolist()):
        step = _double(states[i + 1]) - _double(states[i])
        energy += float(step.square().sum()) / h
        # from the difference itself: the difference of two energies would leave only rounding of
        # a nearly straight path
        bent += float((step - chord * (h / whole)).square().sum()) / h
    batch = states.shape[1]
    return energy / batch, bent / batch


def _double(x: Tensor) -> Tensor:
    """`x` in float64, on the CPU where its device knows none."""
    return (x.cpu() if x.device.type == "mps" else x).detach().double()


def _check(states: Tensor, times: Tensor) -> None:
    if states.ndim < 3 or len(states) < 2 or states[0].numel() == 0:
        raise ValueError(
            "expected states as [S + 1, B, *D] with at least one step and one sample, got shape"
            f" {tuple(states.shape)}"
        )
    if times.shape != states.shape[:1]:
        raise ValueError(
            f"expected one time for each of {len(states)} states, got shape {tuple(times.shape)}"
        )
    forward = times.detach().diff()
    if not (bool((forward > 0).all()) or bool((forward < 0).all())):
        raise ValueError("times must all increase or all decrease from one state to the next")
    wrong = torch.zeros(states.shape[1], dtype=torch.bool, device=states.device)
    for state in states:
        wrong |= ~state.isfinite().flatten(1).all(1)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {len(wrong)} paths hold NaN or infinity; leave them out, or"
            " take smaller steps"
        )
