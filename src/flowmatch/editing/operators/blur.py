"""Blurred images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flowmatch.editing.operators.operator import LinearOperator


@dataclass(frozen=True, eq=False)
class Blur(LinearOperator):
    """Circular convolution of each channel with a kernel: diagonal under the Fourier transform.

        A x = F^-1 (H F x),   A^+ y = F^-1 (conj(H) / |H|^2 F y) where H is not 0

    The image wraps round at its borders, which makes the pseudo-inverse exact. A Gaussian blur
    damps the finest waves below any noise, so that without a ridge `pinv` blows that noise up: give
    the methods the noise level, at least that of rounding to 8 bits (0.0023).

    Args:
        kernel: [h, w], its centre at (h // 2, w // 2).
    Raises:
        ValueError: the kernel is no matrix.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        if self.kernel.ndim != 2:
            raise ValueError(f"expected a kernel [h, w], got shape {tuple(self.kernel.shape)}")

    @classmethod
    def gaussian(cls, sigma: float) -> Self:
        """A Gaussian of standard deviation `sigma` > 0 in pixels, out to 4 `sigma`."""
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be a positive number of pixels, got {sigma}")
        reach = math.ceil(4 * sigma)
        row = torch.arange(-reach, reach + 1, dtype=torch.float64)
        row = torch.exp(-(row**2) / (2 * sigma**2))
        kernel = row[:, None] * row
        return cls(kernel / kernel.sum())

    def __call__(self, x: Tensor) -> Tensor:
        return self._filter(x, self._transfer(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._transfer(y).conj())

    def pinv(self, y: Tensor, *, ridge: float = 0.0) -> Tensor:
        transfer = self._transfer(y)
        power = transfer.abs() ** 2
        if ridge > 0:
            return self._filter(y, transfer.conj() / (power + ridge))
        seen = power.sqrt() > 10 * torch.finfo(y.dtype).eps * power.max().sqrt()
        return self._filter(y, torch.where(seen, transfer.conj() / power.clamp(min=1e-300), 0.0))

    def norm_squared(self, y: Tensor) -> float:
        return float((self._transfer(y).abs() ** 2).max())

    def naive(self, y: Tensor) -> Tensor:
        """The blurred image as it is."""
        return y

    def _transfer(self, x: Tensor) -> Tensor:
        """`H`, [height, width // 2 + 1]; a kernel larger than the image wraps round too."""
        height, width = x.shape[-2:]
        h, w = self.kernel.shape
        rows = (torch.arange(h) - h // 2) % height
        columns = (torch.arange(w) - w // 2) % width
        places = (rows[:, None].expand(h, w), columns.expand(h, w))
        wrapped = torch.zeros(height, width, dtype=torch.float64)
        wrapped.index_put_(places, self.kernel.cpu().double(), accumulate=True)
        transfer: Tensor = torch.fft.rfft2(wrapped)
        return transfer.to(x.device)

    def _filter(self, x: Tensor, transfer: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x) * transfer.to(torch.promote_types(x.dtype, torch.complex64))
        out: Tensor = torch.fft.irfft2(spectrum, s=x.shape[-2:])
        return out
