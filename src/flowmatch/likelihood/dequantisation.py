"""Densities of discrete images: uniform dequantisation, and the bound that it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from flowmatch.likelihood.bits import bin_width
from flowmatch.randomness import keyed_generator


def dequantise(
    x1: Tensor,
    *,
    seeds: Iterable[int] | None = None,
    draw: int = 0,
    stream: int = 0,
    bins: int = 256,
) -> Tensor:
    """Images of `bins` levels, each value spread evenly over the bin around its level.

        x1 + w (u - 1/2),   u uniform in [0, 1),   w = 2 / (bins - 1)

    The bins are centred on the levels and tile `[-1 - w/2, 1 + w/2)`, so a uint8 image comes out as
    itself again by rounding. The noise of a sample depends on `(stream, its seed, draw)` alone.

    Args:
        x1: images in [-1, 1] on the levels `2 k / (bins - 1) - 1`, [B, *D]; of uint8 images u that
            is `u / 127.5 - 1`, as data sets give them.
        seeds: one number a sample; None numbers the batch from 0. Of a data set that is done in
            batches, pass the indices.
        draw: which of a sample's many draws, >= 0.
        stream: which family of seeds.
        bins: number of levels, >= 2.
    Returns:
        [B, *D].
    Raises:
        ValueError: `x1` is not on the levels, or `seeds` do not fit.
    Source: Theis et al. 2016, "A note on the evaluation of generative models", section 3.1.
    """
    width = bin_width(bins)
    _check_levels(x1, width, bins)
    numbers = list(range(len(x1)) if seeds is None else seeds)
    if len(numbers) != len(x1):
        raise ValueError(f"{len(numbers)} seeds for a batch of {len(x1)}; give one a sample")
    noise = torch.empty(x1.shape, dtype=x1.dtype)  # on the CPU, so that every device has the same
    for row, seed in zip(noise, numbers, strict=True):
        generator = keyed_generator("dequantise", stream, seed, draw)
        row.uniform_(-width / 2, width / 2, generator=generator)
    return x1 + noise.to(x1.device)


def importance_weighted_bound(
    log_density: Callable[[Tensor], Tensor],
    x1: Tensor,
    *,
    draws: int,
    seeds: Iterable[int] | None = None,
    stream: int = 0,
    bins: int = 256,
) -> Tensor:
    """A lower bound on the log-probability of discrete images, as a mean log-density of their bins.

        log (1/K) sum_k p(x1 + u_k)  <=  log (1/w^dims) P(x1)    in expectation,

    with K dequantised draws and P the density's integral over the bin of x1. One draw gives the
    usual bound; it rises with K and tends to the right side. It is `nats` for `bits_per_dim`.

    A `log_density` with noise of its own (`Hutchinson` probes) is overestimated by up to half the
    noise's variance, as far as that noise differs between the draws of a sample: `log_prob` with
    the same seeds uses the same probes for all, which keeps it small.

    Args:
        log_density: images [B, *D] -> nats [B], e.g. `lambda x: log_prob(flow, x, cond=labels)`.
        x1: images on their levels, [B, *D], see `dequantise`.
        draws: K, >= 1.
        seeds: one number a sample, which its noise follows from; None numbers the batch from 0.
        stream: which family of seeds.
        bins: number of levels, >= 2.
    Returns:
        Nats, [B].
    Raises:
        ValueError: fewer than 1 draw, or images and seeds that `dequantise` refuses.
    Source: Burda et al. 2016, "Importance Weighted Autoencoders", equation 8; for dequantisation:
    Ho et al. 2019, "Flow++", section 3.1.
    """
    if draws < 1:
        raise ValueError(f"the bound needs at least 1 draw, got {draws}")
    numbers = list(range(len(x1)) if seeds is None else seeds)
    noisy = (dequantise(x1, seeds=numbers, draw=k, stream=stream, bins=bins) for k in range(draws))
    return torch.stack([log_density(x) for x in noisy]).logsumexp(0) - math.log(draws)


def _check_levels(x1: Tensor, width: float, bins: int) -> None:
    wanted = f"images of {bins} levels evenly over [-1, 1]"
    if not x1.is_floating_point():
        raise ValueError(f"expected {wanted}, got {x1.dtype}; map uint8 images by u / 127.5 - 1")
    level = (x1 + 1) / width
    off = (level - level.round()).abs().amax() if x1.numel() else 0
    if off > 0.02 or bool((x1.abs() > 1 + width / 100).any()):
        raise ValueError(
            f"expected {wanted}, got values between them or outside; pass images that are not yet"
            " dequantised, and bins as they have levels"
        )
