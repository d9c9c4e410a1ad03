"""Autoencoders of images in the form of diffusers: images to latents, and back."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowmatch.data.dataset import digest

_PIXELS_AT_ONCE = 2**20
"""Pixels of the images that are encoded or decoded together: 16 of 256 x 256."""
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


class Pretrained(NamedTuple):
    """Where an autoencoder is: a folder that `save_pretrained` wrote, or a name on the hub."""

    name: str
    subfolder: str | None = None

    def __str__(self) -> str:
        return self.name if self.subfolder is None else f"{self.name}/{self.subfolder}"


class Autoencoder:
    """A pretrained autoencoder, frozen.

    Args:
        model: a model of diffusers with `encode` and `decode`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The code of images in [-1, 1].

        Args:
            images: [B, C, H, W] float32, on the device of the model.
        Returns:
            [B, 2, c, h, w]: mean and standard deviation of the encoder's Gaussian; [B, 1, c, h, w]
            of an encoder that gives no Gaussian but the code itself.
        """
        return torch.cat([_moments(self.model, part) for part in _chunks(images, images.shape)])

    @torch.no_grad()
    def decode(self, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The images [B, *shape] in [-1, 1] of latents [B, c, h, w], a few at a time.

        Computed in the precision of autocast, but not in fp16: the activations of common
        autoencoders exceed its range.
        """
        kind = latents.device.type
        fp16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        with torch.autocast(kind, enabled=False) if fp16 else contextlib.nullcontext():
            parts = [self.model.decode(part).sample.float() for part in _chunks(latents, shape)]
        return torch.cat(parts)

    @cached_property
    def weights(self) -> str:
        """What the autoencoder is: 12 hexadecimal digits of its class and weights.

        Not of its settings: each version of diffusers writes others.
        """
        tensors = sorted(self.model.state_dict().items())
        named = [part for name, tensor in tensors for part in (name, tensor)]
        return digest(type(self.model).__name__, *named)

    def to(self, device: torch.device | str) -> Autoencoder:
        """The autoencoder, moved to `device`."""
        self.model.to(device)
        return self


def load(source: Pretrained, *, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder with its weights, which must be safetensors: nothing in them is executed.

    Raises:
        ValueError: diffusers is missing, or there is no such autoencoder.
    """
    kind, _ = _description(source)
    where = {"subfolder": source.subfolder, "use_safetensors": True}
    try:
        with _quiet():
            model = kind.from_pretrained(source.name, **where, torch_dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:  # no weights, others, no connection
        raise ValueError(
            f"cannot load the weights of the autoencoder {source}: {_first_line(error)}"
        ) from None
    return Autoencoder(model).to(device)


@lru_cache(maxsize=8)
def latent_shape(source: Pretrained, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (c, h, w) of the latents of images of `shape` (C, H, W).

    It follows from the autoencoder's settings: its weights are not read, and nothing is computed.

    Raises:
        ValueError: diffusers is missing, there is no such autoencoder, or the images do not suit
            it.
    """
    kind, settings = _description(source)
    channels = settings.get("in_channels", shape[0])
    if channels != shape[0]:
        raise ValueError(
            f"the autoencoder {source} takes images of {channels} channels, these have {shape[0]};"
            " choose another autoencoder, or images of its channels"
        )
    try:
        with torch.device("meta"), torch.no_grad(), _quiet():  # shapes without memory
            model = kind.from_config(settings)
            code = _moments(model, torch.zeros(1, *shape))[:, 0]
            back = tuple(model.decode(code).sample.shape[1:])
    except Exception as error:  # what a model that is no autoencoder of images raises
        raise ValueError(
            f"{source} cannot encode images of shape {shape} ({_first_line(error)}); choose an"
            " autoencoder of images, with encode and decode, and a size that it takes"
        ) from None
    latent = tuple(code.shape[1:])
    if back != shape:
        raise ValueError(
            f"images of {shape[-1]}x{shape[-1]} come back from the autoencoder {source} as"
            f" {'x'.join(map(str, back[1:]))}; set image_size to a multiple of"
            f" {back[-1] // latent[-1]}"
        )
    return latent


def _description(source: Pretrained) -> tuple[Any, dict[str, Any]]:
    """The class of an autoencoder and its settings, from its config.json alone."""
    try:
        import diffusers
    except ImportError:
        raise ValueError(
            "latents need diffusers, which is not installed: pip install 'flowmatch[latent]'"
        ) from None
    folder = Path(source.name) / (source.subfolder or "")
    if not Path(source.name).exists() and not _HUB_NAME.fullmatch(source.name):
        raise ValueError(
            f"there is no folder {source.name}; data.autoencoder is a folder that save_pretrained"
            " of diffusers wrote, or a name on the Hugging Face hub"
        )
    if Path(source.name).exists() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no autoencoder: it has no config.json; give the folder that"
            " save_pretrained wrote, or set data.subfolder (often vae)"
        )
    try:
        with _quiet():
            settings = diffusers.AutoencoderKL.load_config(source.name, subfolder=source.subfolder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"there is no folder {source}, and it cannot be had from the Hugging Face hub"
            f" ({_first_line(error)}); check the name and the connection"
        ) from None
    name = settings.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (hasattr(kind, "encode") and hasattr(kind, "decode")):
        raise ValueError(f"{source} is a {name} and no autoencoder: it cannot encode and decode")
    return kind, settings


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what diffusers says of settings that older versions wrote, and of its own calls."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    finally:
        logging.set_verbosity(before)


def _moments(model: Any, images: Tensor) -> Tensor:
    """Mean and standard deviation [B, 2, c, h, w], or the code itself [B, 1, c, h, w]."""
    found = model.encode(images)
    law = getattr(found, "latent_dist", None)
    if law is not None:
        return torch.stack([law.mean, law.std], dim=1)
    code: Tensor = found.latents if "latents" in found else found.latent
    return code[:, None]


def _chunks(x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """`x` in parts of so few rows that their images are not too many pixels."""
    return torch.split(x, max(1, _PIXELS_AT_ONCE // (shape[-2] * shape[-1])))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
