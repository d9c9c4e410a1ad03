"""Animations of an integration: noise becoming images, or points on their way."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from flowmatch.pictures.grid import image_grid
from flowmatch.pictures.plots import scatter, square_around
from flowmatch.tensors import to_uint8

Animation = Literal["gif", "mp4"]
Frames = Sequence[Image.Image]

_FRAME = 60
"""Milliseconds that a frame is shown."""
_REST = 1500
"""Milliseconds that the last one is shown."""
_RATE = 50
"""Frames of a video in a second: 3 a frame of ours, 75 for the rest."""


class Integrator(Protocol):
    """A solver, as far as it is needed here."""

    def trajectory(self, f: Any, x: Tensor) -> Iterator[tuple[float, Tensor]]: ...


def states_over_time(
    solver: Integrator, f: Callable[..., Tensor], x0: Tensor, *, frames: int = 40
) -> list[Tensor]:
    """The states of an integration from t=0 to 1 at evenly spaced times: `frames` of [B, *D].

    A solver with dense output is asked for just those times. Of any other, each frame holds the
    latest state that was reached by its time, so that few steps show as jumps.

    Args:
        solver: the integrator.
        f: `f(x, t) -> dx/dt`, what it integrates.
        x0: where it starts, [B, *D].
        frames: how many, >= 2.
    """
    times = [k / (frames - 1) for k in range(frames)]
    with torch.no_grad():
        dense = getattr(solver, "at", None)
        if dense is not None:
            return list(dense(f, x0, times))
        states: list[Tensor] = []
        now = x0
        for reached, x in solver.trajectory(f, x0):
            while times[len(states)] < reached - 1e-9:
                states.append(now)
            now = x
    return states + [now] * (frames - len(states))


def image_frames(
    states: Iterable[Tensor], *, columns: int | None = None, smallest: int = 32
) -> list[Image.Image]:
    """States [N, C, H, W] in [-1, 1] as grids of images; the arguments are `image_grid`'s."""
    return [image_grid(to_uint8(x), columns=columns, smallest=smallest) for x in states]


def point_frames(
    states: Sequence[Tensor], *, labels: Tensor | None = None, size: int = 512
) -> list[Image.Image]:
    """States [N, D] as scatter plots whose axes stand still."""
    limits = square_around(torch.stack(list(states)))
    return [scatter(x, labels=labels, size=size, limits=limits, area=12) for x in states]


def check_animation(kind: Animation) -> None:
    """Refuse an animation that this machine cannot write.

    Raises:
        ValueError: MP4 without ffmpeg.
    """
    if kind == "mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(
            "MP4 is written by the program ffmpeg, which is not on the PATH; install it, or write"
            " a gif"
        )


def save_animation(frames: Frames, path: Path) -> None:
    """Write frames as the GIF or MP4 that the path's suffix says, with a rest on the last.

    The file appears whole or not at all.

    Args:
        frames: pictures of one size, at least one.
        path: a name that ends in .gif or .mp4.
    """
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".gif":
        _write_gif(frames, partial)
    else:
        assert path.suffix == ".mp4"
        _write_mp4(frames, partial)
    os.replace(partial, path)


def _write_gif(frames: Frames, path: Path) -> None:
    palettes = [frame.convert("P") for frame in frames]
    times = [_FRAME] * (len(frames) - 1) + [_REST]
    options: dict[str, Any] = {"append_images": palettes[1:], "duration": times, "loop": 0}
    palettes[0].save(path, "gif", save_all=True, **options)


def _write_mp4(frames: Frames, path: Path) -> None:
    # the usual players want even sizes
    width, height = (side + side % 2 for side in frames[0].size)
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {_RATE} -i -"
    out = "-f mp4 -pix_fmt yuv420p -movflags +faststart -loglevel error -y"
    shown = [_FRAME * _RATE // 1000] * (len(frames) - 1) + [_REST * _RATE // 1000]
    pixels = bytearray()
    for frame, times in zip(frames, shown, strict=True):
        even = Image.new("RGB", (width, height), "white")
        even.paste(frame)
        pixels += even.tobytes() * times
    command = ["ffmpeg", *raw.split(), *out.split(), str(path)]
    done = subprocess.run(command, input=pixels, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"ffmpeg could not write {path}: {done.stderr.decode().strip()}")
