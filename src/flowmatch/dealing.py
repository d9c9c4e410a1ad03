"""What samples are conditioned on that come without data: lists of values, dealt in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowmatch.data import ConditionedImages, DataConfig, Values, decoded_data, rows_of
from flowmatch.flow import Flow
from flowmatch.networks.conditions import AUGMENT, LABEL
from flowmatch.tensors import send


@dataclass(frozen=True)
class Dealt:
    """Conditions dealt in turn: sample i has value i mod N of the N values of each name.

    Args:
        values: by name; what is not named is absent.
        title: a few words for a protocol, e.g. "10 classes in turn"; None without any values.
        facts: what a record says of them, as JSON has it.
    """

    values: Mapping[str, Values]
    title: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, indices: Sequence[int], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor] | None:
        """The conditions of some samples, on a device; None if nothing is conditioned on."""
        at = torch.tensor(indices, dtype=torch.int64)
        found = {name: rows_of({name: v}, at % len(v))[name] for name, v in self.values.items()}
        return {name: send(value, device) for name, value in found.items()} or None

    @property
    def turn(self) -> int | None:
        """How many samples it takes until all conditions come again; None if they differ in it."""
        lengths = {len(v) for v in self.values.values()}
        return lengths.pop() if len(lengths) == 1 else None


def others_of(flow: Flow) -> list[str]:
    """The names of a flow's conditions besides the class, without that of augmentation."""
    return [name for name in flow.nulls if name not in (LABEL, AUGMENT)]


def classes_dealt(num_classes: int | None) -> Dealt:
    """All classes in turn; nothing without classes."""
    if num_classes is None:
        return Dealt({})
    return Dealt({"label": torch.arange(num_classes)}, f"{num_classes} classes in turn")


def in_turn(flow: Flow, values: Mapping[str, Values]) -> Dealt:
    """All classes in turn; of a flow with other conditions, those of its data, row by row.

    Args:
        flow: the model.
        values: the conditions of its data, as of `Dataset.values`.
    """
    if not others_of(flow):
        return classes_dealt(flow.num_classes)
    known = {name: v for name, v in values.items() if name in flow.nulls}
    return Dealt(known, f"{', '.join(known)} of the training data in turn" if known else None)


def usual_conditions(flow: Flow, data: DataConfig, count: int) -> Dealt:
    """What samples of a flow are conditioned on unless the user says otherwise.

    As of `in_turn`, without the images themselves.

    Args:
        flow: the model.
        data: what it was trained on, which is read only in the second case.
        count: how many samples there will be.
    Raises:
        ValueError: the data are needed and cannot be read.
    """
    images = decoded_data(data)
    if not others_of(flow) or not isinstance(images, ConditionedImages):
        return classes_dealt(flow.num_classes)
    try:
        values = images.values("train", first=count)
    except ValueError as error:
        raise ValueError(
            f"this model is given the conditions of the training data: {error}"
        ) from None
    return in_turn(flow, values)
