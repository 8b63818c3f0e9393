"""Decodes an untrusted image file to 8-bit RGB, or gives the reason why it cannot be used."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that Pillow decodes itself. Others (EPS, PDF, …) start external programs or have no fixed pixels.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


class BadImageError(ValueError):
    """An image that cannot be used. The message is the reason, without the path."""


def decode_rgb(source: Path | bytes, max_pixels: int) -> Image.Image:
    """Decode an image to 8-bit RGB, as an image viewer shows it.

    EXIF orientation is applied, palettes are resolved, transparent images are composited on white, 16-bit grey is
    scaled to 8 bits, and grey is converted to three equal channels.

    Parameters
    ----------
    source : path of a file, or the bytes of an encoded image.
    max_pixels : largest width x height, pixels; checked against the header before any pixel is decoded.

    Raises
    ------
    BadImageError
        The image is empty, in no known format, truncated, too large, animated, or has pixel values of unknown range.
    """
    if isinstance(source, Path):
        try:
            if source.stat().st_size == 0:
                raise BadImageError("the file is empty (0 bytes)")
        except OSError as error:
            raise BadImageError(f"the file cannot be opened: {error.strerror}") from None
    elif not source:
        raise BadImageError("the image is empty (0 bytes)")
    try:
        with _header_limits_off(), Image.open(_opened(source), formats=FORMATS) as image:
            _check_header(image, max_pixels)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadImageError(f"not an image in a known format ({', '.join(FORMATS)})") from None
    except BadImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, ZeroDivisionError) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise BadImageError(f"damaged: {error}") from None


def _opened(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


@contextmanager
def _header_limits_off() -> Iterator[None]:
    """Disable Pillow's size check, which only warns up to twice its limit; `_check_header` checks the size instead."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about harmless metadata; real damage raises an error
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} pixels is more than data.max_pixels ({max_pixels:,})")
    if width == 0 or height == 0:
        raise BadImageError(f"the image has no pixels ({width} x {height})")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further frames of an MPO are previews of the photograph
        raise BadImageError(f"the image has {frames} frames; it must have one")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImageError(
            f"{image.mode}-mode pixels (32 bits) have no fixed range; convert the image to 8 or 16 bits"
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
