"""Decodes an untrusted image file to 8-bit pixels, or gives the reason why it cannot be used.

The only place where an image becomes pixels: prepare, predict and the served model all decode here.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image

from udc_model.data.formats import HEAD_BYTES, BadImageError, conversion_advice, image_format
from udc_model.data.frames import Frame, damage_as_bad_image, read_frames
from udc_model.data.transforms import Decoding

_NAMES = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000, AVIF, HEIC, DICOM"


def decode(source: Path | bytes, decoding: Decoding) -> Image.Image:
    """Decode an image to 8-bit sRGB or grey, as an image viewer shows it.

    EXIF orientation and colour profile are applied, palettes are resolved, transparent images are composited on white,
    values deeper than 8 bits are mapped by ``decoding.intensity``, and the channels are converted.

    Parameters
    ----------
    source : path of a file, or the bytes of an encoded image.
    decoding : settings. The size limit is checked against the header before any pixel is decoded.

    Returns
    -------
    An image of mode ``RGB`` (3 channels) or ``L`` (1 channel). Of several frames it is the first one.

    Raises
    ------
    BadImageError
        The image is empty, in no known format, damaged, too large, has several frames although one is required, or has
        values without a range.
    """
    for frame in decode_frames(source, decoding):
        return to_channels(frame.to_image(decoding.intensity), decoding.channels)
    raise BadImageError("damaged: the image has no frames")


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of mode ``RGB`` or ``L`` to 3 equal channels or to 1 (ITU-R 601 luma)."""
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def decode_frames(source: Path | bytes, decoding: Decoding, name: str = "") -> Iterator[Frame]:
    """Decode the frames of an image that ``decoding.frames`` selects; parameters and errors as `decode`.

    Parameters
    ----------
    name : of the file that ``source`` is the contents of; "" if it is that of no file.
    """
    with _opened(source) as handle:
        form = _format(handle, name if isinstance(source, bytes) else source.name)
        with damage_as_bad_image(form), _header_limits.off():
            if form == "DICOM":
                from udc_model.data.dicom import read_dicom

                yield from read_dicom(handle, decoding)
                return
            _prepare_reader(form)
            yield from read_frames(handle, form, decoding)


def read_header(path: Path) -> tuple[str, str, tuple[int, int]]:
    """Format and mode of an image, as Pillow names them, and its width and height, pixels, without decoding it.

    Raises
    ------
    BadImageError
        As `decode_frames`, as far as the header shows it. Of damaged files, other exceptions too.
    """
    with _opened(path) as handle:
        form = _format(handle, path.name)
        with damage_as_bad_image(form), _header_limits.off():
            if form == "DICOM":
                from udc_model.data.dicom import read_dicom_header

                return form, *read_dicom_header(handle)
            _prepare_reader(form)
            with Image.open(handle, formats=(form,)) as image:
                return str(image.format), image.mode, image.size


def _prepare_reader(form: str) -> None:
    if form == "HEIF":
        _register_heif()
    elif form == "AVIF":
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # prepare decodes an image on each core


def _opened(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except (OSError, ValueError) as error:
        raise BadImageError(f"the file cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def _format(handle: BinaryIO, name: str) -> str:
    """Return the format of a file by its content; ``name`` is "" for the bytes of an image."""
    try:
        head = handle.read(HEAD_BYTES)
        handle.seek(0)
    except OSError as error:
        raise BadImageError(f"the file cannot be read: {error.strerror}") from None
    if not head:
        raise BadImageError(f"the {'file' if name else 'image'} is empty (0 bytes)")
    form = image_format(head)
    if form is not None and form != "TIFF" and not name.lower().endswith(".mrxs"):
        return form
    advice = conversion_advice(head, name)
    if advice is not None or form is None:
        raise BadImageError(advice or f"not an image in a known format ({_NAMES})")
    return form


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise BadImageError("HEIC needs an extra; pip install 'udc-model[heif]'") from None
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


class _HeaderLimits:
    """Disables Pillow's size check and all warnings while any thread decodes an image.

    The check only warns up to twice its limit; each frame's header is checked instead. Warnings are about harmless
    metadata; real damage raises an error. Both settings belong to the process, so the first thread changes them and
    the last one restores them.
    """

    _IGNORED = r"(?#udc_model decodes images)"  # matches every module, and is equal to no filter of another program

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._limit: int | None = None
        self._filters: list[Any] = []

    @contextmanager
    def off(self) -> Iterator[None]:
        """Disable both during the block."""
        with self._lock:
            if not self._users:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._filters = cast("list[Any]", warnings.filters)
                warnings.filterwarnings("ignore", module=self._IGNORED)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._restore()

    def _restore(self) -> None:
        if Image.MAX_IMAGE_PIXELS is None:  # otherwise another program has set it since
            Image.MAX_IMAGE_PIXELS = self._limit
        # `warnings.catch_warnings` of another thread may have exchanged the list.
        for filters in (self._filters, cast("list[Any]", warnings.filters)):
            filters[:] = [each for each in filters if getattr(each[3], "pattern", None) != self._IGNORED]


_header_limits = _HeaderLimits()
