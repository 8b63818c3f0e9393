"""Reads the frames of an image file with Pillow: orientation applied, values as they are stored.

Pillow reduces 16-bit colours to their high byte and misreads some rare TIFF files; both are corrected here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from udc_model.data.colour import to_rgb
from udc_model.data.formats import BadImageError, conversion_advice
from udc_model.data.intensity import Range, to_8_bits
from udc_model.data.quality.traits import NO_FACTS, FileFacts
from udc_model.data.transforms import Decoding

if TYPE_CHECKING:
    from PIL.GifImagePlugin import GifImageFile
    from PIL.TiffImagePlugin import TiffImageFile

MAX_FRAMES = 10_000  # per file
_MAX_COUNTED = 1_000  # for a message
_ORIENTATION, _NEW_SUBFILE, _PHOTOMETRIC, _SAMPLE_FORMAT, _SUB_IFDS, _DESCRIPTION, _DNG = (
    274, 254, 262, 339, 330, 270, 50706,
)  # fmt: skip
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BIG_ENDIAN = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F"}  # Pillow's raw modes; little-endian ones
_NATIVE = "L" if sys.byteorder == "little" else "B"

logging.getLogger("PIL").setLevel(logging.INFO)  # its debug messages quote metadata of the files


@contextmanager
def damage_as_bad_image(form: str = "image") -> Iterator[None]:
    """Turn the errors that decoders raise on damaged files into `BadImageError`; ``form`` is the format's name."""
    try:
        yield
    except BadImageError:
        raise
    except UnidentifiedImageError:
        kinds = ", or has a kind of pixels that is not supported (as 64-bit values); save it with 8 or 16 bits"
        raise BadImageError(f"the {form} file is damaged{kinds if form == 'TIFF' else ''}") from None
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError,
            AssertionError, RuntimeError) as error:  # fmt: skip
        text = " ".join(str(error).split()) or type(error).__name__
        printable = "".join(character if character.isprintable() else "?" for character in text)
        raise BadImageError(f"damaged: {printable[:200]}") from None


@dataclass(frozen=True)
class Frame:
    """A decoded frame: an 8-bit image, or the values of an image deeper than 8 bits.

    Attributes
    ----------
    image : the 8-bit image of any mode; None if the frame is deeper.
    deep : (H, W) or (H, W, 3) integers or floating-point numbers; None if the frame has 8 bits.
    total : number of frames of the file.
    is_inverted : the smallest value of ``deep`` is white.
    alpha : (H, W) uint8 opacity of ``deep``; None if it is opaque.
    profile : ICC profile of the file.
    facts : what the file says about the image.
    """

    image: Image.Image | None = None
    deep: NDArray[Any] | None = None
    total: int = 1
    is_inverted: bool = False
    alpha: NDArray[np.uint8] | None = None
    profile: bytes | None = None
    facts: FileFacts = NO_FACTS

    def to_image(self, intensity: Range | None) -> Image.Image:
        """Convert to 8-bit sRGB (mode ``RGB``), or to ``L`` if the frame is grey; ``intensity`` as in `Decoding`.

        Raises
        ------
        BadImageError
            The values have no range, or the image is damaged.
        """
        with damage_as_bad_image():
            return self._to_image(intensity)

    def _to_image(self, intensity: Range | None) -> Image.Image:
        if self.image is not None:
            return to_rgb(self.image, self.profile)
        assert self.deep is not None
        pixels = to_8_bits(self.deep, intensity)
        image = Image.fromarray(255 - pixels if self.is_inverted else pixels)
        if self.alpha is not None:
            image = image.convert("RGBA")
            image.putalpha(Image.fromarray(self.alpha))
        return to_rgb(image, self.profile)


def read_frames(handle: BinaryIO, form: str, decoding: Decoding) -> Iterator[Frame]:
    """Decode the frames of a file that Pillow reads: all with ``frames: each``, else the first one.

    Parameters
    ----------
    handle : the open file, at its start.
    form : its format, from `image_format`.

    Raises
    ------
    BadImageError
        There are several frames but ``frames`` is ``error``, a frame is too large, or its pixels are not supported.
    """
    with Image.open(handle, formats=(form,)) as image:
        _check_size(image, decoding.max_pixels)
        if form == "TIFF":
            _check_ordinary_tiff(_as_tiff(image))
        numbers = _frame_numbers(image, decoding.frames)
        for number in numbers if decoding.frames == "each" else numbers[:1]:
            if number != image.tell():
                image.seek(number)
                _check_size(image, decoding.max_pixels)
            yield replace(_frame(handle, image, number, len(numbers)), facts=FileFacts.of(image))


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError(
            f"{width} x {height} pixels is more than data.max_pixels ({max_pixels:,}); reduce the image, or raise "
            "data.max_pixels (of a trained model: max_pixels in its preprocessor_config.json)"
        )
    if width == 0 or height == 0:
        raise BadImageError(f"the image has no pixels ({width} x {height})")


def _as_tiff(image: Image.Image) -> TiffImageFile:
    return cast("TiffImageFile", image)  # a cast does not load Pillow's reader, of which most data sets need one only


def _check_ordinary_tiff(image: TiffImageFile) -> None:
    """Refuse camera raw files and whole slides, whose first frame is a thumbnail or far too large."""
    tags = image.tag_v2
    is_raw = _DNG in tags or (tags.get(_NEW_SUBFILE, 0) & 1 and _SUB_IFDS in tags)
    name = "a.dng" if is_raw else "a.svs" if str(tags.get(_DESCRIPTION, "")).startswith("Aperio") else ""
    advice = conversion_advice(b"II*\0", name)
    if advice is not None:
        raise BadImageError(advice)


def _frame_numbers(image: ImageFile.ImageFile, frames: str) -> list[int]:
    """Return the numbers of a file's frames, the one to show first."""
    first = image.tell()
    if image.format in ("JPEG", "MPO") or frames == "first":  # the further frames of an MPO are previews
        return [first]
    limit = MAX_FRAMES if frames == "each" else _MAX_COUNTED
    if image.format == "TIFF":
        numbers = _tiff_pages(_as_tiff(image), limit)
    elif image.format == "GIF":
        numbers = _gif_frames(cast("GifImageFile", image), limit)
    else:
        numbers = list(range(min(getattr(image, "n_frames", 1), MAX_FRAMES + 1)))
    if frames == "error" and len(numbers) > 1:
        count = len(numbers) if len(numbers) <= _MAX_COUNTED else f"more than {_MAX_COUNTED:,}"
        raise BadImageError(f"the image has {count} frames; it must have one, or set data.frames to first or each")
    if len(numbers) > MAX_FRAMES:
        raise BadImageError(f"the image has more than {MAX_FRAMES:,} frames")
    return numbers


def _gif_frames(image: GifImageFile, limit: int) -> list[int]:
    """Return the numbers of at most ``limit`` + 1 frames, without decoding them, as Pillow's n_frames does for all."""
    numbers = [0]
    try:
        for number in range(1, limit + 1):
            image._seek(number, update_image=False)
            numbers.append(number)
    except EOFError:
        pass
    image.seek(0)
    return numbers


def _tiff_pages(image: TiffImageFile, limit: int) -> list[int]:
    """Return the numbers of at most ``limit`` + 1 pages, without reduced copies (thumbnails, pyramids) and masks."""
    first, numbers = image.tell(), [0]
    number = 0
    while len(numbers) <= limit and number < 2 * limit:
        number += 1
        try:
            image.seek(number)
        except EOFError:
            break
        if not image.tag_v2.get(_NEW_SUBFILE, 0) & 5:
            numbers.append(number)
    image.seek(first)
    return numbers


def _frame(handle: BinaryIO, image: ImageFile.ImageFile, number: int, total: int) -> Frame:
    rawmode, codec = _correct_tiles(image)
    profile = image.info.get("icc_profile") or None
    transparent = image.info.get("transparency")
    if rawmode == "LA;16B":
        return _deep_grey_with_alpha(image, total)
    has_16_bit_colours = ";16" in rawmode and image.mode in ("RGB", "RGBA") and not rawmode.startswith("RGBa")
    image.load()
    turned = _turned(image)
    if has_16_bit_colours:
        low = _turned(_low_bytes(handle, image, number))
        values = (np.asarray(turned).astype(np.uint16) << 8) | np.asarray(low)
        alpha = np.asarray(turned.getchannel("A")) if image.mode == "RGBA" else None
        if alpha is None and isinstance(transparent, tuple):
            alpha = np.where((values == np.array(transparent)).all(axis=-1), 0, 255).astype(np.uint8)
        return Frame(None, np.ascontiguousarray(values[..., :3]), total, alpha=alpha, profile=profile)
    if image.mode.startswith("I") or image.mode == "F":
        values = _stored_values(np.asarray(turned), image, handle, codec)
        alpha = None
        if isinstance(transparent, int):
            alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        is_inverted = image.format == "TIFF" and _as_tiff(image).tag_v2.get(_PHOTOMETRIC) == 0
        return Frame(None, values, total, is_inverted, alpha)
    return Frame(turned, total=total, profile=profile)


def _turned(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    method = _TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = image.info
    return turned


def _correct_tiles(image: ImageFile.ImageFile) -> tuple[str, tuple[Any, ...]]:
    """Correct Pillow's description of the pixels of some TIFF files; return its raw mode, and codec and arguments."""
    if not image.tile:
        return "", ()
    tiles = image.tile
    if image.format == "TIFF":
        tags = _as_tiff(image).tag_v2
        bits, is_planar = tags.get(258, (1,))[0], tags.get(284, 1) == 2
        order = tags.prefix[:1].decode()  # M is big-endian
        tiles = [_correct_tile(tile, bits if is_planar else 8, order) for tile in tiles]
        image.tile = tiles
        if is_planar and bits == 16 and tiles[0].codec_name == "libtiff":
            raise BadImageError("16-bit colours in compressed planes are not supported; "
                                "save the TIFF with interleaved channels")  # fmt: skip
    arguments = tiles[0].args if isinstance(tiles[0].args, tuple) else (tiles[0].args,)
    return str(arguments[0]) if arguments else "", (tiles[0].codec_name, *arguments)


def _correct_tile(tile: Any, planar_bits: int, order: str) -> Any:
    rawmode, *rest = tile.args
    if tile.codec_name == "libtiff" and _NATIVE == "L":
        rawmode = _BIG_ENDIAN.get(rawmode, rawmode)  # libtiff returns native bytes
    elif planar_bits == 16 and rawmode in ("R", "G", "B", "A"):
        rawmode += ";16B" if order == "M" else ";16L"
    return tile._replace(args=(rawmode, *rest))


@contextmanager
def _rewound(handle: BinaryIO) -> Iterator[None]:
    """Read a file from its start, and restore the position."""
    position = handle.tell()
    handle.seek(0)
    try:
        yield
    finally:
        handle.seek(position)


def _low_bytes(handle: BinaryIO, image: ImageFile.ImageFile, number: int) -> Image.Image:
    """Decode the low bytes of 16-bit colours, by the raw mode of the opposite byte order."""
    with _rewound(handle), Image.open(handle, formats=(image.format or "",)) as again:
        if number != again.tell():
            again.seek(number)
        _correct_tiles(again)
        tiles = []
        for tile in again.tile:
            rawmode, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            order = _NATIVE if rawmode[-1] == "N" else rawmode[-1]
            tiles.append(tile._replace(args=(rawmode[:-1] + ("L" if order == "B" else "B"), *rest)))
        again.tile = tiles
        again.load()
        return again


def _deep_grey_with_alpha(image: ImageFile.ImageFile, total: int) -> Frame:
    """Decode 16-bit grey with alpha as if its four bytes were RGBA."""
    tile = image.tile[0]
    image.tile = [tile._replace(args="RGBA")]
    image.load()
    pixels = np.asarray(_turned(image)).astype(np.uint16)
    return Frame(None, pixels[..., 0] << 8 | pixels[..., 1], total, alpha=pixels[..., 2].astype(np.uint8))


def _stored_values(
    values: NDArray[Any], image: ImageFile.ImageFile, handle: BinaryIO, codec: tuple[Any, ...]
) -> NDArray[Any]:
    """Undo Pillow's changes of the values of a deep grey image."""
    if image.format == "TIFF":
        sample_format = _as_tiff(image).tag_v2.get(_SAMPLE_FORMAT, (1,))[0]
        if image.mode == "I" and sample_format == 1:
            return np.asarray(values.view(np.uint32))
    if codec[:1] in (("ppm",), ("ppm_plain",)):  # scaled to 16 bits
        return np.asarray(np.rint(values * (codec[2] / 65535)), dtype=np.uint16)
    if image.format == "PPM" and image.mode == "I":
        return values.astype(np.uint16)
    if image.format == "JPEG2000":
        return np.asarray(values.astype(np.uint16) >> (16 - _jpeg2000_bits(handle)))
    return values.astype(np.uint16) if image.mode.startswith("I;16") else values


def _jpeg2000_bits(handle: BinaryIO) -> int:
    """Return the bits of the first component from the codestream's SIZ marker; Pillow scales them to 16."""
    with _rewound(handle):
        head = handle.read(2**16)
    start = head.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(head) <= start + 42:
        return 16
    return min((head[start + 42] & 0x7F) + 1, 16)
