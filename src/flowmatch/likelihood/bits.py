"""From nats of a continuous density to bits a dimension of the images that it stands for."""

from __future__ import annotations

import math

from torch import Tensor


def bits_per_dim(nats: Tensor, dims: int, *, bins: int = 256) -> Tensor:
    """Code length of discrete images in bits a dimension, from the density of dequantised ones.

        bits/dim = -(nats + dims log w) / (dims log 2),   w = 2 / (bins - 1)

    Images of `bins` levels in [-1, 1] have levels `w` apart, so `w^dims` is the volume of an
    image's bin, and density times volume its probability; 256 levels make `w` 1/127.5. The uniform
    density over all bins gives exactly `log2(bins)`.

    Args:
        nats: log-density of images in [-1, 1], dequantised as `dequantise` does, [B].
        dims: number of values in an image, e.g. 3 * 32 * 32.
        bins: number of levels, >= 2.
    Returns:
        Bits a dimension, [B]; lower is better.
    Raises:
        ValueError: `dims` or `bins` is too small.
    Source: Theis et al. 2016, "A note on the evaluation of generative models", section 3.1.
    """
    if dims < 1:
        raise ValueError(f"dims is the number of values in an image, at least 1; got {dims}")
    return -(nats / dims + math.log(bin_width(bins))) / math.log(2)


def bin_width(bins: int) -> float:
    """Distance of neighbouring levels where `bins` of them span [-1, 1], both ends included.

    Raises:
        ValueError: fewer than 2 levels.
    """
    if bins < 2:
        raise ValueError(f"bins is the number of levels, at least 2; got {bins}")
    return 2 / (bins - 1)
