"""What the samples of a set are conditioned on: a list of values a name, and embedded texts.

Absent values are NaN, in every number of them. A list is a tensor [N, ...] or, since texts differ
in length and repeat, `Texts`. Networks read the tensors that `rows_of` gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flowmatch.tensors import send

LABEL = "label"
"""The name of the class, whose values are int64."""


@dataclass(frozen=True)
class Texts:
    """The token embeddings of texts, one text a sample, each distinct one stored once.

    Args:
        tokens: the tokens of all distinct texts, one text after the other, [T, dim] float16.
        ends: where they lie: text m has the tokens from `ends[m]` to before `ends[m + 1]`.
        which: the text of each sample, [N] int64; -1 for none.
        key: names the texts and their encoder.
    """

    tokens: Tensor
    ends: Tensor
    which: Tensor
    key: str

    def __len__(self) -> int:
        return len(self.which)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text: a batch is as long, whatever is in it."""
        return int(self.ends.diff().max())

    def rows(self, indices: Tensor) -> Tensor:
        """The texts of some samples as a network reads them: [B, longest, dim], NaN behind each."""
        which = self.which[indices]
        start = self.ends[which]
        length = torch.where(which < 0, 0, self.ends[which + 1] - start)
        place = torch.arange(self.longest)
        at = (start[:, None] + place).clamp(max=len(self.tokens) - 1)
        beyond = place >= length[:, None]
        return self.tokens[at].float().masked_fill_(beyond[..., None], math.nan)


Values = Tensor | Texts
"""One a sample: labels [N], scalars [N], vectors [N, dim], tokens [N, tokens, dim], or texts."""


def rows_of(values: Mapping[str, Values], indices: Tensor) -> dict[str, Tensor]:
    """The values of some samples, by name, on the device where they are kept."""
    return {
        name: v.rows(indices.cpu())
        if isinstance(v, Texts)
        else v.index_select(0, send(indices, v.device))
        for name, v in values.items()
    }


def shape_of(values: Values) -> tuple[int | None, ...]:
    """Shape of one sample's value: () a scalar, (dim,) a vector, (None, dim) a text."""
    if isinstance(values, Texts):
        return (None, values.tokens.shape[1])
    return (None, values.shape[2]) if values.ndim == 3 else tuple(values.shape[1:])


def stamp_of(values: Mapping[str, Values]) -> list[str | Tensor]:
    """What the values are, to be digested, e.g. for a protocol; empty without any."""
    parts: list[str | Tensor] = []
    for name, v in sorted(values.items()):
        parts += [name, v.key, v.which] if isinstance(v, Texts) else [name, v]
    return parts


def moved(values: Mapping[str, Values], device: torch.device | str) -> dict[str, Values]:
    """The values on a device; texts, which may be many, stay in the memory of the CPU."""
    return {k: v if isinstance(v, Texts) else v.to(device) for k, v in values.items()}


def check_names(names: Mapping[str, object]) -> None:
    """Raise ValueError for names that no network can have."""
    if LABEL in names:
        raise ValueError("the class is no entry of conditions; give it as labels (label_column)")
    if bad := [name for name in names if not name.isidentifier()]:
        raise ValueError(f"conditions have names like variables, got {bad}")


def check_values(values: Mapping[str, Values], *, length: int) -> None:
    """Raise ValueError unless there is one floating-point value of a name for each sample."""
    check_names(values)
    for name, v in values.items():
        if len(v) != length:
            raise ValueError(
                f"condition {name!r} has {len(v)} values for {length} samples; give one a sample"
            )
        if isinstance(v, Tensor) and (v.dtype != torch.float32 or v.ndim > 3):
            raise ValueError(
                f"condition {name!r} is a {v.dtype} tensor of shape {tuple(v.shape)}; expected"
                " float32: [N] scalars, [N, dim] vectors or [N, tokens, dim] embedded texts"
            )
