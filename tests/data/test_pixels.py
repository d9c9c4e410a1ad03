"""Every kind of pixel becomes 8-bit grey or RGB."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flowmatch.data.pixels import to_channels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize(("channels", "wanted"), [(1, "L"), (3, "RGB")])
def test_grey_stays_grey_in_every_mode(mode, channels, wanted):
    grey = 255 if mode == "1" else 102  # 102 is a colour of the web palette
    source = Image.new("L", (4, 4), grey).convert("RGB").convert(mode)
    image = to_channels(source, channels)
    assert image.mode == wanted
    assert np.abs(np.asarray(image).astype(int) - grey).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled_not_clipped(dtype):
    ramp = (np.arange(256, dtype=dtype) * 257).reshape(16, 16)
    image = to_channels(Image.fromarray(ramp), 1)
    assert np.array_equal(np.asarray(image).ravel(), np.arange(256))


def test_transparent_pixels_turn_white():
    hidden = Image.new("RGBA", (2, 2), (200, 0, 0, 0))
    assert to_channels(hidden, 3).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert to_channels(palette, 3).getpixel((0, 0)) == (255, 255, 255)


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="convert the image to 8 or 16 bits"):
        to_channels(Image.new("F", (2, 2)), 1)
