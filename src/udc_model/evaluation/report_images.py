"""Images inside the report: figures as they are, photographs as small JPEGs, pixel images as PNGs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PIXELS = 64  # images up to this side stay exact; a browser enlarges them without smoothing
_THUMBNAIL = 224  # pixels of the longer side of a larger image
_SHEET = 1100  # pixels of the width of a contact sheet
_LARGEST_PNG = 120_000  # bytes; a larger contact sheet becomes a JPEG
_QUALITY = 82


def png_uri(path: Path) -> str:
    """The contents of a PNG file as a data URI."""
    return _uri(path.read_bytes(), "png")


def thumbnail_uri(pixels: NDArray[np.uint8], side: int = _THUMBNAIL) -> str:
    """An image (S, S, C) as a data URI, with at most ``side`` pixels, or `_PIXELS` if that is more, on a side."""
    image = Image.fromarray(pixels.squeeze())
    if max(image.size) <= _PIXELS:
        return _encoded(image, "png")
    image.thumbnail((side, side))
    return _encoded(image, "jpeg")


def sheet_uri(path: Path) -> str:
    """A PNG file of many images as a data URI, smaller and as a JPEG if the file is large."""
    if path.stat().st_size <= _LARGEST_PNG:
        return png_uri(path)
    with Image.open(path) as image:
        sheet = image.convert("RGB")
    sheet.thumbnail((_SHEET, 10 * _SHEET))
    return _encoded(sheet, "jpeg")


def _encoded(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": _QUALITY} if form == "jpeg" else {"optimize": True}))
    return _uri(buffer.getvalue(), form)


def _uri(contents: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(contents).decode()}"
