"""Converts 8-bit images of every mode to sRGB or grey, by their colour profile if they contain one."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL import ImageCms

_MAX_PROFILE_BYTES = 8 * 2**20
_EQUAL = 2  # levels of 255; a profile that changes no colour by more is sRGB itself
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}  # mode of an image by colour space of its profile
_STRIP_PIXELS = 2**22  # composited at a time, which bounds the memory


def to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an 8-bit image to ``RGB``, or to ``L`` if it is grey; transparent pixels are composited on white.

    Parameters
    ----------
    image : of any mode with 8 bits per channel or less.
    profile : ICC profile of the file. A profile that is damaged or does not fit the image's mode is ignored, as web
        browsers do.
    """
    if image.mode in ("RGB", "L") and profile is None and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        return _on_white(image, profile)
    if image.mode in ("1", "I;16"):
        image = image.convert("L")
    elif image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    transform = None if profile is None else _transform(profile, image.mode)
    if transform is None and image.mode == "LAB":
        transform = _lab_transform()
    if transform is not None:
        return transform.apply(image)
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _on_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Composite a transparent image on white, strip by strip."""
    width, height = image.size
    result = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        strip.info = image.info  # a transparent colour of the palette
        rgba = strip.convert("RGBA")
        transform = None if profile is None else _transform(profile, "RGB")
        if transform is not None:
            alpha = rgba.getchannel("A")
            rgba = transform.apply(rgba.convert("RGB")).convert("RGBA")
            rgba.putalpha(alpha)
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, rgba).convert("RGB"), (0, top))
    return result


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion from a profile to sRGB; None if it changes nothing or the profile cannot be used."""
    if len(profile) > _MAX_PROFILE_BYTES:
        return None
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _SPACES.get(source.profile.xcolor_space.strip()) != mode:
            return None
        transform = _to_srgb(source, mode)
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        return None
    return None if mode in ("RGB", "L") and _changes_nothing(transform, mode) else transform


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    from PIL import ImageCms

    return _to_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")


def _to_srgb(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    from PIL import ImageCms

    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.arange(0, 256, 17 if mode == "RGB" else 1, dtype=np.uint8)
    if mode == "RGB":
        probe = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(1, -1, 3)
    else:
        probe = levels[None]
    converted = np.asarray(transform.apply(Image.fromarray(probe))).astype(int)
    expected = probe if mode == "RGB" else np.repeat(probe[..., None], 3, axis=-1)
    return int(np.abs(converted - expected).max()) <= _EQUAL
