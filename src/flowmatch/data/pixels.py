"""Any Pillow image as 8-bit grey or RGB, and PNG files of such."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image as 8-bit grey (1 channel) or RGB (3 channels).

    16-bit grey is scaled down, not clipped. Transparency is laid over white: what lies beneath a
    transparent pixel is arbitrary, and must not be learnt.

    Raises:
        ValueError: the pixels are floating-point, whose range no file format fixes.
    """
    mode = "L" if channels == 1 else "RGB"
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if image.mode == mode and not transparent:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):  # "I;16", "I;16B", or "I" as Pillow gives for 16-bit PGM
        wide = np.asarray(image).astype(np.float32).clip(0, 65535)
        image = Image.fromarray((wide / 257).round().astype(np.uint8))
    elif transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def encode_png(image: Tensor) -> bytes:
    """A uint8 [C, H, W] image, C = 1 or 3, as PNG.

    Pillow's encoder lets other threads run while it compresses. torchvision's takes two thirds of
    the time (benchmarks/output.py), but is deprecated and to be removed.
    """
    content = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(content, "png")
    return content.getvalue()
