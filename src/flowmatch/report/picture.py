"""Picture files inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from flowmatch.report.html import Markup, element, paragraph

_LARGEST_BYTES = 1_000_000
_LARGEST_SIDE = 1600


def embed(path: Path, alt: str) -> Markup:
    """A picture file as a data URI, or a sentence that says why it is not shown.

    A file above 1 MB would make a page too heavy to mail: it is shown as WebP, at most 1,600 pixels
    wide or high.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            width, height, kind = picture.width, picture.height, picture.get_format_mimetype()
            if len(content) > _LARGEST_BYTES:
                picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
                content, kind = _webp(picture), "image/webp"
    except UnidentifiedImageError:
        return paragraph(f"{path.name} cannot be shown: it is no picture.", class_="missing")
    except (OSError, Image.DecompressionBombError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return paragraph(f"{path.name} cannot be shown: {why}.", class_="missing")
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return element("img", src=source, alt=alt, width=width, height=height)


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=88)
    return buffer.getvalue()
