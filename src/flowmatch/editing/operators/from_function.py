"""Any linear function as an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.editing.operators.operator import ITERATIONS, LinearOperator, least_squares


@dataclass(frozen=True)
class FromFunction(LinearOperator):
    """A differentiable linear function: the adjoint comes by autograd, the inverse by iteration.

    Args:
        function: [B, *shape] -> [B, *M], linear in each sample on its own.
        shape: of one sample, e.g. (3, 32, 32).
        iterations: conjugate-gradient iterations of `pinv`, >= 1: exact once there are as many as
            `A A^T` has distinct eigenvalues, but for rounding.
    Raises:
        ValueError: fewer than 1 iteration.
    """

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    iterations: int = ITERATIONS

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        with torch.enable_grad():  # the restorations run without
            x = torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device, requires_grad=True)
            measured = self.function(x)
            if measured.shape != y.shape:
                raise ValueError(
                    f"the function gives measurements of shape {tuple(measured.shape[1:])}, but y"
                    f" has {tuple(y.shape[1:])}; give y as the function makes it"
                )
            (x_bar,) = torch.autograd.grad(measured, x, y)
        return x_bar

    def pinv(self, y: Tensor, *, ridge: float = 0.0) -> Tensor:
        return least_squares(self, y, ridge=ridge, iterations=self.iterations)
