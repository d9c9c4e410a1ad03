"""What the configs of networks refuse in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args


def check_positive(config: object, *names: str) -> None:
    """Refuse fields below 1; a field that is None is not set.

    Raises:
        ValueError: names the field and its value.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse what is not among the choices of a `Literal`.

    Raises:
        ValueError: names the field, its value and the choices.
    """
    if value not in (known := get_args(choices)):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}")


def check_multipliers(multipliers: Sequence[int]) -> None:
    """Refuse a U-Net without levels, or with a level without channels.

    Raises:
        ValueError: says which multipliers came.
    """
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers are {multipliers}; give at least one, each at least 1")


def check_dropout(dropout: float) -> None:
    """Refuse what is no probability of dropping a value.

    Raises:
        ValueError: says what came.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")


def check_image_shape(
    shape: tuple[int, ...], *, levels: int, attention_resolutions: Sequence[int]
) -> None:
    """Refuse a shape that a U-Net of so many levels cannot take.

    Raises:
        ValueError: `shape` is not (C, H, W), H or W cannot be halved often enough, or an attention
            resolution never occurs.
    """
    if len(shape) != 3:
        raise ValueError(
            f"a U-Net takes images of shape (C, H, W), got {tuple(shape)}; for vectors use an MLP"
        )
    factor = 2 ** (levels - 1)
    for side in shape[1:]:
        if side % factor:
            below, above = side // factor * factor, (side // factor + 1) * factor
            raise ValueError(
                f"{levels} levels halve the image {levels - 1} times, but {side} is not divisible"
                f" by {factor}; resize or pad it to {f'{below} or ' * (below > 0)}{above}, or give"
                " fewer multipliers"
            )
    heights = [shape[1] >> level for level in range(levels)]
    if absent := [size for size in attention_resolutions if size not in heights]:
        raise ValueError(
            f"attention_resolutions has {absent}, but the feature maps of {shape[1]}-pixel images"
            f" have heights {heights}; choose among these (they are sizes, not downsampling rates)"
        )
