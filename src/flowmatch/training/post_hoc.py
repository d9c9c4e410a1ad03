"""Averages of other widths, put together after the training from snapshots of a few.

Power profiles of a few widths at many times span others: the snapshots are mixed so that their
profiles come closest to the profile that is wanted, and their weights alike.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
section 3.2.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from flowmatch.training.ema import WIDEST_STD, Power, gamma_of
from flowmatch.training.snapshots import Snapshot, Snapshots, write_average

WORST = 0.1
"""A mixture whose profile is off by more than this is refused."""
MOST_GAIN = 20.0
"""Rounding to 11 bits, multiplied by more than this, is no longer small beside an average."""
_SINGULAR = 1e-13
"""Directions with less than this share of the largest eigenvalue are rounding errors."""

Floats = NDArray[np.float64]


def inner_products(
    gamma_a: Floats, time_a: Floats, gamma_b: Floats, time_b: Floats
) -> NDArray[np.float64]:
    """The inner products of power profiles of two kinds, [A] and [B].

        p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)   for 0 <= tau <= t
        <p_a, p_b> = (gamma_a + 1)(gamma_b + 1) / ((gamma_a + gamma_b + 1) t_l) (t_s / t_l)^gamma_l

    where t_s and t_l are the smaller and the larger time, and gamma_l is of the larger.

    Args:
        gamma_a, gamma_b: exponents, at least 0.
        time_a, time_b: ends t of the profiles, above 0.
    Returns:
        [A, B].
    """
    ga, ta, gb, tb = np.broadcast_arrays(gamma_a[:, None], time_a[:, None], gamma_b, time_b)
    small, large = np.minimum(ta, tb), np.maximum(ta, tb)
    decline: Floats = (small / large) ** np.where(ta > tb, ga, gb)
    product: Floats = (ga + 1) * (gb + 1) / ((ga + gb + 1) * large) * decline
    return product


@dataclass(frozen=True)
class Mixture:
    """How snapshots are mixed.

    Args:
        coefficients: of the snapshots; their sum is 1.
        error: how far the mixture of the profiles is from the one wanted, |p - p*| / |p*| in the
            mean square over time.
    """

    coefficients: tuple[float, ...]
    error: float

    @property
    def gain(self) -> float:
        """What independent errors of the snapshots are multiplied by."""
        return math.hypot(*self.coefficients)


class Basis:
    """The power profiles of snapshots, from which others are mixed.

    Args:
        stds: their relative standard deviations.
        images: their times, above 0.
    """

    def __init__(self, stds: Sequence[float], images: Sequence[float]) -> None:
        self._gammas = np.array([gamma_of(std) for std in stds])
        self._times = np.array(images, dtype=np.float64)
        gram = inner_products(self._gammas, self._times, self._gammas, self._times)
        self._scale = gram.diagonal() ** -0.5
        self._gram = gram * self._scale[:, None] * self._scale
        values, vectors = np.linalg.eigh(self._gram)
        kept = values > _SINGULAR * values[-1]
        self._inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def mix(self, std: float, at: float) -> Mixture:
        """The mixture that comes closest to the profile of a width at a time, in images.

            minimise |sum_i c_i p_i - p*|^2   subject to   sum_i c_i = 1

        The constraint gives weights that do not change back as they are: they change little in
        comparison with what they are, so that a sum off by a thousandth would be felt.
        """
        gamma, time = np.array([gamma_of(std)]), np.array([float(at)])
        wanted = inner_products(self._gammas, self._times, gamma, time)[:, 0] * self._scale
        norm = float(inner_products(gamma, time, gamma, time)[0, 0])
        free = self._inverse @ wanted
        towards = self._inverse @ self._scale
        c = free + towards * (1 - self._scale @ free) / (self._scale @ towards)
        squared = float(norm - 2 * c @ wanted + c @ self._gram @ c) / norm
        # rounding may put a perfect mixture a hair below 0
        return Mixture(tuple((c * self._scale).tolist()), max(squared, 0.0) ** 0.5)

    def reach(self, at: float) -> tuple[float, float] | None:
        """The narrowest and the widest std that can be mixed at a time; None if none can."""
        stds = np.geomspace(0.002, WIDEST_STD * (1 - 1e-12), 100).tolist()
        good = [std for std in stds if self.mix(std, at).error <= WORST]
        return (good[0], good[-1]) if good else None


@dataclass(frozen=True)
class Reconstruction:
    """An average that was put together.

    Args:
        tensors: the network's state, in float32 or wider.
        profile: of the average.
        step, images: of the training, until when it averages.
        error: how far its profile is off, as of `Mixture`.
        snapshots: how many were mixed.
    """

    tensors: dict[str, Tensor]
    profile: Power
    step: int
    images: int
    error: float
    snapshots: int

    @property
    def title(self) -> str:
        """What protocols call it."""
        return f"{self.profile.title}, post-hoc"

    @property
    def file_name(self) -> str:
        """What its file is called unless something else is wanted."""
        return f"{self.profile.name}-step{self.step:07d}.safetensors"

    def write(self, path: Path) -> None:
        """Write it as a weights file that says what it is, complete or not at all."""
        write_average(
            path,
            self.tensors,
            self.profile.name,
            self.title,
            step=self.step,
            images=self.images,
        )


def reconstruct(run_dir: Path, std: float, *, images: int | None = None) -> Reconstruction:
    """The average by a power profile, from the snapshots of a run.

    Args:
        run_dir: the run directory, trained with `train.post_hoc`.
        std: relative standard deviation of the profile, in (0, 0.28867].
        images: until when it averages; None is the newest snapshot.
    Raises:
        ValueError: there are no snapshots, or none from which this average can be mixed.
    """
    profile = Power(std=std)
    folder, found = Snapshots(run_dir).folder, Snapshots(run_dir).all()
    if not found:
        raise ValueError(
            f"{folder} holds no snapshots of averages; train with e.g."
            " train.post_hoc.every_images=100000 to keep some"
        )
    first, last = found[0].images, found[-1].images
    at = last if images is None else images
    if not first <= at <= last:
        raise ValueError(
            f"the snapshots in {folder} are of {first:,} to {last:,} images, got --images {at}"
        )
    # what came later is no part of it, but for the next where it ends between two
    until = min(s.images for s in found if s.images >= at)
    found = [s for s in found if s.images <= until]
    basis = Basis([s.std for s in found], [s.images for s in found])
    mixture = basis.mix(std, at)
    if mixture.gain > MOST_GAIN and any(_is_rounded(s) for s in found):
        raise ValueError(
            f"{profile.name} at {at:,} images would multiply the rounding of the fp16 snapshots in"
            f" {folder} by {mixture.gain:.0f}; choose an --std nearer to theirs, or keep them with"
            " train.post_hoc.precision=fp32"
        )
    if mixture.error > WORST:
        raise ValueError(_out_of_reach(basis, profile, at, mixture.error, folder, len(found)))
    step = round(float(np.interp(at, [s.images for s in found], [s.step for s in found])))
    tensors = _mix(found, mixture.coefficients)
    return Reconstruction(tensors, profile, step, at, mixture.error, len(found))


def _is_rounded(snapshot: Snapshot) -> bool:
    """Whether it is kept in half precision."""
    with safe_open(snapshot.path, "pt") as file:
        return any(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118


def _mix(snapshots: Sequence[Snapshot], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """The weights' mixture, one tensor at a time; what is no floating point is of the newest."""
    mixed: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(s.path, "pt")) for s in snapshots]
        for name in files[-1].keys():  # noqa: SIM118 (it is no mapping)
            newest = files[-1].get_tensor(name)
            if not newest.is_floating_point():
                mixed[name] = newest
                continue
            total = torch.zeros(newest.shape, dtype=torch.float64)
            for file, coefficient in zip(files, coefficients, strict=True):
                total += coefficient * file.get_tensor(name).double()
            mixed[name] = total.to(torch.promote_types(newest.dtype, torch.float32))
    return mixed


def _out_of_reach(
    basis: Basis, profile: Power, at: int, error: float, folder: Path, count: int
) -> str:
    reach = basis.reach(at)
    within = (
        f"Within {WORST:.0%} are stds from {reach[0]:.2g} to {reach[1]:.2g}: choose another --std"
        if reach
        else "No std is within reach at this time: choose an --images of a snapshot"
    )
    return (
        f"{profile.name} at {at:,} images cannot be put together from the {count} snapshots in"
        f" {folder}: the profile of the closest mixture is {error:.0%} off. {within}, or keep"
        " snapshots more often"
    )
