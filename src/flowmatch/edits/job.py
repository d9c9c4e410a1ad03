"""What an editing job is, and what is wrong with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flowmatch.dealing import Dealt
from flowmatch.editing import (
    Blur,
    DFlow,
    Downsample,
    Grayscale,
    Inpaint,
    LinearOperator,
    PnPFlow,
    Projection,
    Restoration,
)
from flowmatch.edits.inputs import read_mask
from flowmatch.flow import Flow
from flowmatch.solvers import Heun

Task = Literal["inpaint", "superresolve", "deblur", "colourise", "sdedit", "interpolate"]
Method = Literal["projection", "posterior", "pnp", "dflow"]

_RESTORING = ("method", "degrade", "noise")
TASKS: dict[Task, tuple[str, ...]] = {
    "inpaint": ("mask", "box", *_RESTORING),
    "superresolve": ("factor", *_RESTORING),
    "deblur": ("sigma", *_RESTORING),
    "colourise": _RESTORING,
    "sdedit": ("strength",),
    "interpolate": ("frames",),
}
"""The options of each task beside those that all have."""
_NEEDED = {"superresolve": "factor", "deblur": "sigma", "sdedit": "strength"}

ROUNDING = 1 / 127.5 / math.sqrt(12)
"""Standard deviation of rounding to 8 bits, for images in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class EditJob:
    """What to do with the images, and where to put the results.

    Args:
        task: what to do; its options are those that `TASKS` names, all others must be None.
        out: the folder for one PNG a result, `contact-sheet.png` and `edit.json`.
        mask: image file of the model's size, white where pixels are unknown (inpaint).
        box: unknown pixels as (top, left, height, width), instead of a mask (inpaint).
        factor: pixels of a side of the box that a given pixel is the mean of (superresolve).
        sigma: of the Gaussian blur, in pixels (deblur).
        strength: in [0, 1]; how much of the image is forgotten (sdedit).
        frames: images from the first to the second, both among them (interpolate); 8 if None.
        method: how images are restored; projection if None.
        steps: of projection and pnp; L-BFGS iterations of dflow; solver steps (Heun) of sdedit and
            interpolate. None takes the method's own.
        degrade: take the images as clean: measure them, restore, and compare with them.
        noise: level of the measurement's noise beyond rounding, for images in [-1, 1]; 0 if None.
            With `degrade` it is added.
        seed: image i depends on (seed, i) and its pixels alone.
        label: the class to edit towards; None is the null class of a class-conditional model.
        conditions: others to edit towards, dealt to the images in turn; what is not there is
            absent.
        batch: images computed at once; changes nothing but speed and memory.
    """

    task: Task
    out: Path
    mask: Path | None = None
    box: tuple[int, int, int, int] | None = None
    factor: int | None = None
    sigma: float | None = None
    strength: float | None = None
    frames: int | None = None
    method: Method | None = None
    steps: int | None = None
    degrade: bool | None = None
    noise: float | None = None
    seed: int = 0
    label: int | None = None
    conditions: Dealt | None = None
    batch: int = 64

    def check(self, flow: Flow) -> None:
        """Refuse a job that the model cannot do, before anything is computed."""
        self._check_options()
        if flow.shape is None or len(flow.shape) != 3:
            raise ValueError(f"the model makes samples of shape {flow.shape}, which are no images")
        if flow.decoder is not None:
            raise ValueError(
                "the model makes latents, which no measurement of pixels can be put to; edit with a"
                " model of images"
            )
        classes = flow.num_classes
        if self.label is not None and classes is None:
            raise ValueError("this model takes no class label; leave out --class")
        if self.label is not None and classes is not None and not 0 <= self.label < classes:
            raise ValueError(
                f"class {self.label} is outside the model's classes 0 to {classes - 1}"
            )
        if self.task == "colourise" and flow.shape[0] != 3:
            raise ValueError("colourise needs a model of colour images; this one's are grey")
        if self.restores:
            operator = self.operator(flow.shape)
            operator(torch.zeros(1, *flow.shape))  # a mask or factor that does not fit says so
            self.restoration()

    @property
    def restores(self) -> bool:
        """Whether the task is an inverse problem."""
        return "method" in TASKS[self.task]

    @property
    def length(self) -> int:
        """Frames of an interpolation."""
        return 8 if self.frames is None else self.frames

    @property
    def options(self) -> dict[str, Any]:
        """The task's own options that were given."""
        given = {name: getattr(self, name) for name in TASKS[self.task]}
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
        return {k: v for k, v in plain.items() if v is not None and k not in _RESTORING}

    @property
    def sigma_y(self) -> float:
        """Level of the measurement's noise: files hold 8 bits, whatever else."""
        return math.hypot(self.noise or 0.0, ROUNDING)

    def operator(self, shape: tuple[int, ...]) -> LinearOperator:
        """What the measurement keeps of images of this shape (C, H, W)."""
        if self.task == "inpaint":
            return Inpaint(self._known(shape))
        if self.task == "superresolve":
            assert self.factor is not None  # check saw to it, here and below
            return Downsample(self.factor)
        if self.task == "deblur":
            assert self.sigma is not None
            return Blur.gaussian(self.sigma)
        assert self.task == "colourise"
        return Grayscale()

    def restoration(self) -> Restoration:
        """The method with its settings."""
        if self.method == "pnp":
            return PnPFlow() if self.steps is None else PnPFlow(steps=self.steps)
        if self.method == "dflow":
            own = DFlow(sigma_y=self.sigma_y)
            iterations = own.iterations if self.steps is None else self.steps
            return DFlow(sigma_y=self.sigma_y, iterations=iterations)
        own_steps = Projection().steps if self.steps is None else self.steps
        noise: Literal["all", "ancestral"] = "ancestral" if self.method == "posterior" else "all"
        return Projection(sigma_y=self.sigma_y, steps=own_steps, noise=noise)

    def solver(self) -> Heun:
        """The integrator of sdedit and interpolate."""
        own = {"sdedit": 20, "interpolate": 50}[self.task]
        return Heun(steps=own if self.steps is None else self.steps)

    def _check_options(self) -> None:
        every = dict.fromkeys(name for names in TASKS.values() for name in names)
        given = [name for name in every if getattr(self, name) is not None]
        if wrong := [name for name in given if name not in TASKS[self.task]]:
            raise ValueError(f"{self.task} has no use for --{wrong[0]}; leave it out")
        needed = _NEEDED.get(self.task)
        if needed is not None and needed not in given:
            raise ValueError(f"{self.task} needs --{needed}")
        if self.task == "inpaint" and (self.mask is None) == (self.box is None):
            raise ValueError(
                "inpaint needs to know what to paint: give --mask FILE or --box"
                " Y,X,H,W, one of the two"
            )
        if self.batch < 1:
            raise ValueError(f"--bspp must be at least 1, got {self.batch}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise ValueError(f"--noise must be at least 0, got {self.noise}")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise ValueError(f"--strength must be in [0, 1], got {self.strength}")
        if self.frames is not None and self.frames < 2:
            raise ValueError(f"--frames counts both ends, so it must be at least 2: {self.frames}")

    def _known(self, shape: tuple[int, ...]) -> Tensor:
        """Where pixels are known, bool [H, W]."""
        height, width = shape[1:]
        if self.mask is not None:
            unknown = read_mask(self.mask, (height, width))
            if not unknown.any():
                raise ValueError(f"the mask {self.mask} is all black; paint white what to fill")
            return ~unknown
        assert self.box is not None
        top, left, h, w = self.box
        if min(top, left) < 0 or min(h, w) < 1 or top + h > height or left + w > width:
            raise ValueError(
                f"the box {top},{left},{h},{w} (top, left, height, width) does not lie within"
                f" images of {height}x{width} pixels"
            )
        known = torch.ones(height, width, dtype=torch.bool)
        known[top : top + h, left : left + w] = False
        return known


def parse_box(text: str) -> tuple[int, int, int, int]:
    """A box from its text, e.g. "8,8,12,12".

    Raises:
        ValueError: it is not four whole numbers.
    """
    try:
        top, left, height, width = (int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(
            f"cannot read the box {text!r}; write top,left,height,width, e.g. 8,8,12,12"
        ) from None
    return top, left, height, width
