"""What every metric takes: rows of finite numbers."""

from __future__ import annotations

import torch
from torch import Tensor

SLAB = 2**21
"""Numbers of a slab: long tensors are gone through in slabs of at most 16 MiB of float64."""


def as_rows(x: Tensor, name: str, *, at_least: int = 1) -> Tensor:
    """`x` [N, *D] as rows [N, D], float32 or float64, detached, once it is known to be sound.

    Args:
        x: one sample a row, any floating dtype; half precision becomes float32.
        name: what the error messages call it.
        at_least: how many rows the caller needs.
    Raises:
        ValueError: no rows and columns, not floating point, too few rows, or NaN or infinity.
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(
            f"expected {name} as a floating-point [N, ...] tensor, got shape {tuple(x.shape)} of"
            f" {x.dtype}; give one sample a row"
        )
    if len(x) < at_least or x[:1].numel() == 0:
        raise ValueError(
            f"expected at least {at_least} rows of {name}, got shape {tuple(x.shape)}; draw more"
        )
    x = x.detach().flatten(1)
    wrong = sum(int((~slab.isfinite().all(1)).sum()) for slab in slabs(x))
    if wrong:
        raise ValueError(
            f"{wrong} of {len(x)} rows of {name} hold NaN or infinity; find out where they come"
            " from, or count them and leave them out"
        )
    return x if x.dtype == torch.float64 else x.float()


def as_row_pair(
    x: Tensor, y: Tensor, names: tuple[str, str], *, at_least: int = 1
) -> tuple[Tensor, Tensor]:
    """Two sets of samples of one shape as rows [N, D] and [M, D] of one dtype; see `as_rows`.

    Raises:
        ValueError: the shapes differ in more than the number of rows, or `as_rows` refuses one.
    """
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"{names[0]} have shape {tuple(x.shape)} and {names[1]} {tuple(y.shape)}, but a row of"
            " each must have the same shape; compare samples of one kind"
        )
    x, y = as_rows(x, names[0], at_least=at_least), as_rows(y, names[1], at_least=at_least)
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(x.device, dtype)


def as_feature_pair(
    features: Tensor, reference: Tensor, *, at_least: int = 1
) -> tuple[Tensor, Tensor]:
    """Features [N, D] and reference features [M, D], checked; see `as_row_pair`.

    Raises:
        ValueError: features are not [N, D], or `as_row_pair` refuses them.
    """
    if features.ndim != 2:
        raise ValueError(
            f"expected features as [N, D], got shape {tuple(features.shape)}; pool or flatten them"
        )
    return as_row_pair(features, reference, ("features", "reference features"), at_least=at_least)


def slabs(x: Tensor) -> tuple[Tensor, ...]:
    """`x` [N, D] cut into pieces of whole rows, of about `SLAB` numbers each."""
    return torch.split(x, max(1, SLAB // x.shape[1]))


def on_host(x: Tensor) -> Tensor:
    """`x` as float64 on the CPU, in this order, since not every device knows float64."""
    return x.cpu().double()
