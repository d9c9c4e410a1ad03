"""The helpers that every room shares: shapes, times, devices, uint8."""

from __future__ import annotations

import torch
from torch import Tensor


def expand_like(t: Tensor, x: Tensor) -> Tensor:
    """View per-sample numbers `t` [B] as [B, 1, ...], to broadcast against `x` [B, *D]."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def sum_flat(x: Tensor) -> Tensor:
    """Sum over all dimensions but the first: [B, *D] -> [B]."""
    return x.flatten(1).sum(1)


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all dimensions but the first: [B, *D] -> [B]."""
    return x.flatten(1).mean(1)


def time_dtype(x: Tensor) -> torch.dtype:
    """The type of the times that a field gets with `x`: float64 with a float64 `x`, else float32.

    bf16 cannot tell 0.998 from 1.
    """
    return torch.float64 if x.dtype == torch.float64 else torch.float32


_WIDE = (torch.float32, torch.float64)


def batch_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Time as a field takes it: a [B] tensor on the device of `x` [B, *D], float32 or wider.

    Args:
        t: a number, a 0-d tensor or a [B] tensor.
        x: the batch that the time belongs to; `time_dtype` says which type a number gets.
    Raises:
        ValueError: `t` has another length than the batch.
    """
    if not isinstance(t, Tensor):
        return torch.full((x.shape[0],), t, dtype=time_dtype(x), device=x.device)
    if t.ndim == 1 and t.shape[0] == x.shape[0] and t.dtype in _WIDE and t.device == x.device:
        return t  # the usual case, met at every evaluation of a network
    t = t.to(device=x.device, dtype=torch.promote_types(t.dtype, torch.float32))
    if t.ndim == 0:
        return t.expand(len(x))
    if t.shape != (len(x),):
        raise ValueError(
            f"time has shape {tuple(t.shape)} for a batch of {len(x)}; pass a number or a"
            f" [{len(x)}] tensor"
        )
    return t


def send(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on `device`, without making the host wait: to a GPU through pinned memory."""
    device = torch.device(device)
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8 in [0, 255]: clamp, then round to nearest (never truncate)."""
    return images.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Images in uint8 [0, 255] to float32 in [-1, 1]; `to_uint8` is its exact inverse."""
    return images.float().div_(127.5).sub_(1)
