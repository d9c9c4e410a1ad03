"""Pictures of a job's first samples: the contact sheet, and how they came about."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from flowmatch.generation.drawing import Drawer
from flowmatch.pictures import (
    columns_for,
    image_frames,
    image_grid,
    point_frames,
    save_animation,
    scatter,
    states_over_time,
)

SHOWN = 100
"""Samples on a contact sheet."""
_MOVING = 64
_PIXELS = 2**20
"""An animation shows fewer samples rather than more pixels than this."""
_POINTS = 1000
_CELL = 40


def contact_sheet(first: Tensor, drawer: Drawer) -> Image.Image:
    """The first samples, as they were kept, in one picture."""
    images = first.ndim == 4
    return image_grid(first, columns=_columns(drawer)) if images else scatter(first.flatten(1))


def save_trajectory(drawer: Drawer, path: Path) -> None:
    """Draw the first samples again and keep their way from noise, as GIF or MP4."""
    job, shape = drawer.job, drawer.decoded_shape
    images = len(shape) == 3
    count = min(_MOVING, max(1, _PIXELS // (shape[1] * shape[2]))) if images else _POINTS
    seeds = list(job.seeds[:count])
    x0, cond = drawer.start(seeds)
    with drawer.precision():
        states = states_over_time(job.solver, drawer.time_field(seeds, cond), x0)
        states = [drawer.decode(x) for x in states]
    if images:
        frames = image_frames(states, columns=_columns(drawer), smallest=_CELL)
    else:
        frames = point_frames(states, labels=(cond or {}).get("label"))
    save_animation(frames, path)


def _columns(drawer: Drawer) -> int | None:
    """Columns that hold one class each, where the samples take the classes in turn from the first.

    So do prompts and other conditions. Of few classes, each has several.
    """
    turn, first = drawer.dealt.turn or 1, drawer.job.seeds[:SHOWN]
    if turn < 2 or list(first) != list(range(len(first))):
        return None
    return columns_for(turn * max(1, 10 // turn))
