"""Data sets held in memory as one tensor: a batch is an index_select."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from flowmatch.data.batch import Batch
from flowmatch.data.conditions import LABEL, Values, check_values, moved, rows_of
from flowmatch.data.dataset import Dataset, digest
from flowmatch.tensors import send


class MemoryArrays(Dataset):
    """Samples in one float32 tensor, e.g. the points of a toy density. Never augmented.

    Args:
        x: the samples, [N, *D] float32.
        labels: classes [N] int64 in [0, num_classes), or None.
        num_classes: how many classes there are; None exactly where `labels` is None.
        conditions: other conditions by name, a float32 value a sample, NaN where it is absent:
            scalars [N], vectors [N, dim], or embedded texts [N, tokens, dim].
    Raises:
        ValueError: no samples, another dtype, or labels or conditions that do not fit.
    """

    in_memory: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        num_classes: int | None = None,
        conditions: Mapping[str, Values] | None = None,
    ) -> None:
        if x.dtype != self.dtype or x.ndim < 2 or len(x) == 0:
            raise ValueError(
                f"expected one or more samples as a [N, ...] {self.dtype} tensor, got shape"
                f" {tuple(x.shape)} of {x.dtype}"
            )
        check_labels(labels, num_classes, length=len(x))
        check_values(conditions or {}, length=len(x))
        self.x = x
        self.labels = labels
        self.num_classes = num_classes
        self.conditions = dict(conditions or {})
        self.values = ({} if labels is None else {LABEL: labels}) | self.conditions
        self.shape = tuple(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def raw(self, indices: Tensor, uniforms: Tensor | None) -> Batch:
        device = self.x.device
        cond = {name: send(v, device) for name, v in rows_of(self.values, indices).items()}
        return Batch(self.x.index_select(0, send(indices, device)), cond)

    def identity(self) -> str:
        return digest(self.x, self.labels)

    def to(self, device: torch.device | str) -> Self:
        labels = None if self.labels is None else self.labels.to(device)
        return self._with(self.x.to(device), labels, moved(self.conditions, device))

    def _with(self, x: Tensor, labels: Tensor | None, conditions: Mapping[str, Values]) -> Self:
        return type(self)(x, labels, num_classes=self.num_classes, conditions=conditions)


class MemoryImages(MemoryArrays):
    """Images in one uint8 tensor [N, C, H, W], on the CPU or, to batch at no cost, on the GPU.

    Args:
        images: [N, C, H, W] uint8.
        labels: classes [N] int64 in [0, num_classes), or None.
        num_classes: how many classes there are; None exactly where `labels` is None.
        conditions: see `MemoryArrays`.
        flip: mirror an image left to right where its first uniform number is below 0.5.
    Raises:
        ValueError: no images, another dtype, or labels or conditions that do not fit.
    """

    dtype: ClassVar[torch.dtype] = torch.uint8

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        num_classes: int | None = None,
        conditions: Mapping[str, Values] | None = None,
        flip: bool = False,
    ) -> None:
        if images.ndim != 4:
            raise ValueError(f"expected images as [N, C, H, W], got shape {tuple(images.shape)}")
        super().__init__(images, labels, num_classes=num_classes, conditions=conditions)
        self.flip = flip

    def raw(self, indices: Tensor, uniforms: Tensor | None) -> Batch:
        batch = super().raw(indices, uniforms)
        if not self.flip or uniforms is None:
            return batch
        mirrored = send(uniforms[:, 0], batch.x1.device).lt(0.5)[:, None, None, None]
        return Batch(torch.where(mirrored, batch.x1.flip(-1), batch.x1), batch.cond)

    def _with(self, x: Tensor, labels: Tensor | None, conditions: Mapping[str, Values]) -> Self:
        classes = self.num_classes
        return type(self)(x, labels, num_classes=classes, conditions=conditions, flip=self.flip)


def check_labels(labels: Tensor | None, num_classes: int | None, *, length: int) -> None:
    """Raise ValueError unless there is one int64 label in [0, num_classes) for each sample."""
    if labels is None or num_classes is None:
        if labels is not None or num_classes is not None:
            raise ValueError("labels and num_classes belong together: pass both or neither")
        return
    if labels.shape != (length,) or labels.dtype != torch.int64:
        raise ValueError(
            f"expected one int64 label for each of {length} samples, got shape"
            f" {tuple(labels.shape)} of {labels.dtype}"
        )
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels run from {low} to {high}, but must lie in 0 ... {num_classes - 1}"
            f" for {num_classes} classes; renumber them"
        )
