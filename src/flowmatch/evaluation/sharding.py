"""Work dealt to processes by index, and its results put back in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


def batches_of(indices: range, size: int) -> list[range]:
    """Consecutive parts of `indices`; the same whoever computes them, so that results are too."""
    starts = range(indices.start, indices.stop, size)
    return [range(a, min(a + size, indices.stop)) for a in starts]


def evenly(total: int, most: int) -> Tensor:
    """At most so many of the indices 0, ..., total - 1, evenly spaced: a set may be sorted."""
    return torch.linspace(0, total - 1, min(total, most), dtype=torch.float64).round().long()


def gather_rows(rows: Tensor, index: Tensor, accelerator: Accelerator) -> Tensor:
    """The rows of all processes in the order of their index, on the CPU, in every process.

    Args:
        rows: this process's rows, [n, *D]; n may be 0 and differs between processes.
        index: the place of each, [n] int64; together they cover 0, ..., N - 1, twice if need be.
    """
    if accelerator.num_processes > 1:
        device = accelerator.device
        rows = accelerator.pad_across_processes(rows.to(device))
        index = accelerator.pad_across_processes(index.to(device), pad_index=-1)
        rows, index = accelerator.gather(rows).cpu(), accelerator.gather(index).cpu()
        rows, index = rows[index >= 0], index[index >= 0]
    count = int(index.max()) + 1 if len(index) else 0
    out = torch.empty(count, *rows.shape[1:], dtype=rows.dtype)
    out[index.cpu()] = rows.cpu()
    return out
