"""Flips, scalings, rotations, stretches and shifts that the network is told about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from flowmatch.augmentation.affine_maps import product, rotation, stretch
from flowmatch.augmentation.resampling import resample
from flowmatch.component import Component
from flowmatch.tensors import expand_like, time_dtype

_ENTRIES = {"flip_x": 1, "flip_y": 1, "scale": 1, "rotation": 2, "anisotropy": 2, "translation": 2}
"""Entries of the condition that each part takes, in their order."""
_RESAMPLED = ("scale", "rotation", "anisotropy", "translation")


class Augmented(NamedTuple):
    """Images, and what the network is told of each: zeros where nothing was done."""

    x: Tensor
    condition: Tensor


@dataclass(frozen=True)
class Geometric(Component):
    """Random geometry that does not leak into the samples, as the network is told what was done.

    Each part is applied to an image with a probability of its own, `min(1, probability * part)`.
    The parts, in the order in which they act, with the entries of the condition:

        flip_x, flip_y  mirrored, in half of the cases        1 if mirrored
        scale           larger by 2**(scale_octaves a)        a
        rotation        clockwise by b, uniform               cos b - 1, sin b
        anisotropy      longer along an axis at angle c by    d cos 2c, d sin 2c
                        2**(anisotropy_octaves d), and as
                        much shorter across it; c is 0 or
                        uniform
        translation     to the right and down by              e, f
                        translation_fraction * (e, f)
                        of the width and height

    with standard normal a, d, e, f. The condition says all that was done, and is zero if and only
    if nothing was. To sample, set it to zero. Parts with strength 0 never happen and have no
    entries; `probability: 0` keeps the entries and touches no image.

    The published pipeline has d cos c, d sin c, which is the same for a stretch along an axis and
    a shrinking along it (c + pi, -d). With twice the angle it is the same only for equal maps.

    Args:
        probability: of each part, in [0, 1]; 0.12 for CIFAR-10, 0.15 for faces at 64x64.
        flip_x: strength of mirroring left to right, >= 0, like those that follow. The default
            makes it certain: half of the images are mirrored, at any probability but 0.
        flip_y: strength of mirroring top to bottom.
        scale: strength of scaling.
        rotation: strength of rotating.
        anisotropy: strength of stretching.
        translation: strength of shifting.
        scale_octaves: standard deviation of the logarithm (to base 2) of the scale, > 0.
        rotation_degrees: largest angle to either side, in (0, 180].
        anisotropy_octaves: standard deviation of the logarithm (to base 2) of the stretch, > 0.
        anisotropy_turned: share of the stretches along any axis, in [0, 1]; the others are along
            the image's own.
        translation_fraction: standard deviation of the shift, as a part of the image's size, > 0.
    Raises:
        ValueError: a number is out of its range, or every strength is 0.
    Source: Karras et al. 2022 (EDM), appendix F.2; the resampling after Karras et al. 2020 (ADA),
        appendix B.
    """

    probability: float = 0.12
    flip_x: float = 1e8
    flip_y: float = 1.0
    scale: float = 1.0
    rotation: float = 1.0
    anisotropy: float = 1.0
    translation: float = 1.0
    scale_octaves: float = 0.2
    rotation_degrees: float = 180.0
    anisotropy_octaves: float = 0.2
    anisotropy_turned: float = 0.5
    translation_fraction: float = 0.125
    kind: Literal["geometric"] = "geometric"

    uniforms: ClassVar[int] = 12
    """Uniform numbers that an image takes. Each has its part, whichever parts are switched on."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {self.probability}")
        for name in _ENTRIES:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self._parts:
            raise ValueError(
                "a geometric augmentation needs a part with a strength above 0"
                f" ({', '.join(_ENTRIES)}); to augment nothing, leave it out"
            )
        for name in ("scale_octaves", "anisotropy_octaves", "translation_fraction"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"{name} must be above 0, got {getattr(self, name)}; to switch"
                    f" {name.partition('_')[0]} off, set that to 0"
                )
        if not 0 <= self.anisotropy_turned <= 1:
            raise ValueError(f"anisotropy_turned must be in [0, 1], got {self.anisotropy_turned}")
        if not 0 < self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees must be in (0, 180], got {self.rotation_degrees}")

    @property
    def dim(self) -> int:
        """Length of the condition: 9 with all parts."""
        return sum(_ENTRIES[name] for name in self._parts)

    def __call__(self, x: Tensor, uniforms: Tensor) -> Augmented:
        """Augment images by given random numbers, each by its own row of them alone.

        Args:
            x: images [B, C, H, W], float.
            uniforms: independent numbers in [0, 1), [B, `uniforms`], on the device of `x`.
        Returns:
            the images, of the shape and type of `x`, bit for bit as they were where nothing was
            done and mirrored exactly where nothing else was; and the condition [B, `dim`], float32
            or wider. Images that were resampled can leave the range of `x` a little.
        Raises:
            ValueError: the images are no float [B, C, H, W], or `uniforms` has another shape.
        """
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(
                f"geometric augmentation takes float images [B, C, H, W], got {x.dtype}"
                f" {list(x.shape)}"
            )
        if uniforms.shape != (len(x), self.uniforms):
            raise ValueError(
                f"{len(x)} images need uniforms [{len(x)}, {self.uniforms}], got"
                f" {list(uniforms.shape)}"
            )
        entries = self._draw(uniforms.to(time_dtype(x)))
        x = torch.where(expand_like(entries["flip_x"][:, 0] > 0, x), x.flip(-1), x)
        x = torch.where(expand_like(entries["flip_y"][:, 0] > 0, x), x.flip(-2), x)
        moves = torch.cat([entries[name] for name in _RESAMPLED], 1)
        moved = expand_like((moves != 0).any(1), x)
        with torch.autocast(x.device.type, enabled=False):
            y = resample(x.to(time_dtype(x)), *self._way_back(entries, *x.shape[-2:]))
        condition = torch.cat([entries[name] for name in self._parts], 1)
        return Augmented(torch.where(moved, y.to(x.dtype), x), condition)

    @property
    def _parts(self) -> list[str]:
        """The parts that are switched on."""
        return [name for name in _ENTRIES if getattr(self, name) > 0]

    def _draw(self, u: Tensor) -> dict[str, Tensor]:
        """The entries of every part, [B, 1] or [B, 2] each; zeros where it is not applied.

        An image is mirrored in half of the cases, so below half of the chance.
        """
        mirror_x, mirror_y, resize, a, turn, b, elongate, c, d, move, e, f = u.unbind(1)
        angle = math.radians(self.rotation_degrees) * (2 * b - 1)
        part = self.anisotropy_turned
        turned = torch.where(c < part, c / max(part, 1e-12), 0)  # of a whole circle: 2c
        twice_c, octaves = 2 * math.pi * turned, _normal(d)
        values = {
            "flip_x": (mirror_x, [(2 * mirror_x < self._chance("flip_x")).to(u.dtype)]),
            "flip_y": (mirror_y, [(2 * mirror_y < self._chance("flip_y")).to(u.dtype)]),
            "scale": (resize, [_normal(a)]),
            "rotation": (turn, [torch.cos(angle) - 1, torch.sin(angle)]),
            "anisotropy": (elongate, [octaves * torch.cos(twice_c), octaves * torch.sin(twice_c)]),
            "translation": (move, [_normal(e), _normal(f)]),
        }
        return {
            name: torch.where((gate < self._chance(name))[:, None], torch.stack(entries, 1), 0)
            for name, (gate, entries) in values.items()
        }

    def _chance(self, part: str) -> float:
        return min(1.0, self.probability * float(getattr(self, part)))

    def _way_back(
        self, entries: dict[str, Tensor], height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """The matrix [B, 2, 2] from places in the result to places in the image; the shift [B, 2].

        The image is scaled, rotated, stretched and shifted; the inverses follow in reverse.
        """
        shrink = torch.exp2(-self.scale_octaves * entries["scale"])
        cos, sin = entries["rotation"][:, 0] + 1, entries["rotation"][:, 1]
        c, s = (-self.anisotropy_octaves * entries["anisotropy"]).unbind(1)
        matrix = shrink[:, :, None] * product(rotation(cos, -sin), stretch(c, s))
        across, down = entries["translation"].unbind(1)
        shift = self.translation_fraction * torch.stack([across * width, down * height], 1)
        return matrix, shift


def _normal(u: Tensor) -> Tensor:
    """Standard normal numbers of uniform ones: `sqrt(2) erfinv(2u - 1)`, at most 5.3 in size.

    Uniform float32 numbers are multiples of 2**-24, 0 among them, which would give minus infinity.
    """
    edge = 1 - 2**-23
    return math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-edge, edge))
