"""Encodes prepared images without loss: reading one gives the pixels that preparing its source file gives.

An image is scaled once, with its aspect kept, and stored as lossless WebP. A JPEG file that is not larger than the
scaled image keeps its compressed data, and loses metadata such as the position. Lossy compression would be smaller, but
then the model would be trained and evaluated on other pixels than those it sees in prediction.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from udc_model.data.decode import decode
from udc_model.data.formats import BadImageError
from udc_model.data.jpeg_segments import without_metadata
from udc_model.data.transforms import Decoding, Preprocessing

LARGEST_ASPECT = 4  # long side / short side; of more elongated images, only the part that is prepared is stored
_EFFORT = {"lossless": True, "method": 0, "quality": 0}  # more effort takes 4 to 20 times as long for 5 to 15 % less
_HEADER_BYTES = 2**16  # of an encoded image, besides its pixels


def max_pixels(preprocessing: Preprocessing) -> int:
    """Largest width x height of an image that `encode` stores."""
    return LARGEST_ASPECT * preprocessing.stored_size**2


def max_bytes(preprocessing: Preprocessing) -> int:
    """Largest number of bytes that `encode` returns."""
    return 2 * 3 * max_pixels(preprocessing) + _HEADER_BYTES


def encode(
    image: Image.Image, prepared: NDArray[np.uint8], preprocessing: Preprocessing, jpeg: bytes | None
) -> tuple[bytes, bool]:
    """Encode an image such that `decode_prepared` gives ``prepared``.

    Parameters
    ----------
    image : RGB or grey image that was decoded from a file.
    prepared : ``preprocessing.to_stored(image)``.
    jpeg : contents of the file, if it is a JPEG.

    Returns
    -------
    The encoded image, and whether it is a JPEG.
    """
    to_store = _to_store(image, prepared, preprocessing)
    if to_store is image and jpeg is not None and len(jpeg) <= max_bytes(preprocessing):
        plain = without_metadata(jpeg)
        if plain is not None and (plain == jpeg or _has_pixels(plain, prepared, preprocessing)):
            return plain, True
    buffer = io.BytesIO()
    to_store.save(buffer, "WEBP", **_EFFORT)
    return buffer.getvalue(), False


def _has_pixels(encoded: bytes, prepared: NDArray[np.uint8], preprocessing: Preprocessing) -> bool:
    """Whether an image has the same pixels, as a JPEG without metadata has unless they contained an orientation."""
    try:
        decoded = decode_prepared(encoded, preprocessing)
    except BadImageError:
        return False
    return np.array_equal(decoded, prepared)


def _to_store(image: Image.Image, prepared: NDArray[np.uint8], preprocessing: Preprocessing) -> Image.Image:
    """The smaller of the image and the scaled one, whose centre `Preprocessing.to_stored` crops."""
    if max(image.size) <= LARGEST_ASPECT * min(image.size):
        scaled_size = preprocessing.scaled_size(*image.size)
        if image.width * image.height <= min(scaled_size[0] * scaled_size[1], max_pixels(preprocessing)):
            return image
        if max(scaled_size) <= LARGEST_ASPECT * min(scaled_size):
            return preprocessing.scaled(image)
    return Image.fromarray(prepared.squeeze())


def decode_prepared(encoded: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image of `encode` to the prepared image (S, S, C).

    Raises
    ------
    BadImageError
        The image is damaged, or larger than those that are stored.
    """
    decoding = Decoding(preprocessing.channels, "first", max_pixels=max_pixels(preprocessing))
    return preprocessing.to_stored(decode(encoded, decoding))


def decoder_versions() -> dict[str, str]:
    """Versions of the libraries that the pixels of decoded images may depend on."""
    names = {"pil": "Pillow", "libjpeg_turbo": "libjpeg-turbo", "webp": "libwebp", "littlecms2": "Little CMS"}
    return {title: features.version(name) or "none" for name, title in names.items()}
