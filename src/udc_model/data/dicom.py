"""Reads the frames of DICOM files (extra ``[dicom]``): modality LUT, window and photometric interpretation applied.

Only the elements that describe pixels are used. Nothing about the patient, the study or the device is read into a
message or a result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udc_model.data.formats import BadImageError
from udc_model.data.frames import MAX_FRAMES, Frame
from udc_model.data.transforms import Decoding

if TYPE_CHECKING:
    from pydicom import Dataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # its size after decompression is not bounded
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")


def read_dicom(handle: BinaryIO, decoding: Decoding) -> Iterator[Frame]:
    """Decode the frames of an open DICOM file: all with ``frames: each``, else the first one.

    Grey values are those after the modality LUT (as Hounsfield units). With ``decoding.dicom_windows`` the first window
    or VOI LUT of the file maps them to 8 bits; without a window, and for values of more than 8 bits, they remain deep.

    Raises
    ------
    BadImageError
        The extra is not installed; there are several frames but ``frames`` is ``error``; a frame is too large; or the
        file is damaged, compressed in an unsupported way, or not an image.
    """
    try:
        dataset = _read(handle)
        from pydicom.pixels.utils import pixel_array

        total = _check(dataset, decoding)
        for index in range(total if decoding.frames == "each" else 1):
            pixels = pixel_array(dataset, index=index)
            yield _frame(dataset, index, pixels, total, decoding)
    except BadImageError:
        raise
    except (NotImplementedError, RuntimeError):
        raise BadImageError(
            "the DICOM file is damaged, or compressed in a way that is not supported; "
            "decompress it (dcmdjpeg FILE FILE), or pip install pylibjpeg pylibjpeg-libjpeg"
        ) from None
    except Exception as error:  # pydicom raises exceptions of any kind; their messages may quote values of the file
        raise BadImageError(f"the DICOM file is damaged ({type(error).__name__})") from None


def read_dicom_header(handle: BinaryIO) -> tuple[str, tuple[int, int]]:
    """The mode that Pillow would have for the pixels of an open DICOM file, and its width and height, pixels.

    Raises
    ------
    BadImageError
        The extra is not installed, or the file is deflated. Of damaged files, other exceptions too.
    """
    dataset = _read(handle, stop_before_pixels=True)
    grey = "L" if int(dataset.BitsAllocated) <= 8 else "I;16"
    mode = "RGB" if dataset.PhotometricInterpretation in _COLOURS else grey
    return mode, (int(dataset.Columns), int(dataset.Rows))


def _read(handle: BinaryIO, stop_before_pixels: bool = False) -> Dataset:
    try:
        import pydicom
    except ImportError:
        raise BadImageError("DICOM needs an extra; pip install 'udc-model[dicom]'") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values of the file
    head = handle.read(4096)
    handle.seek(0)
    if _DEFLATED in head:
        raise BadImageError("deflated DICOM is not supported; convert it (dcmconv +te FILE FILE)")
    return pydicom.dcmread(handle, stop_before_pixels=stop_before_pixels)


def _check(dataset: Dataset, decoding: Decoding) -> int:
    """Check the header, and return the number of frames."""
    if "PixelData" not in dataset:
        raise BadImageError("the DICOM file contains no image")
    height, width, total = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames", 1) or 1)
    if not 0 < width * height <= decoding.max_pixels:
        raise BadImageError(f"{width} x {height} pixels is not within 1 and data.max_pixels ({decoding.max_pixels:,})")
    photometric = dataset.PhotometricInterpretation
    if photometric not in ("MONOCHROME1", "MONOCHROME2", *_COLOURS):
        raise BadImageError("the DICOM file has an unsupported photometric interpretation")
    if not 1 <= int(dataset.BitsAllocated) <= 32 or not 1 <= int(dataset.BitsStored) <= int(dataset.BitsAllocated):
        raise BadImageError("the DICOM file has an unsupported number of bits")
    if total > MAX_FRAMES:
        raise BadImageError(f"the image has more than {MAX_FRAMES:,} frames")
    if total > 1 and decoding.frames == "error":
        raise BadImageError(f"the image has {total} frames; it must have one, or set data.frames to first or each")
    return total


def _frame(dataset: Dataset, index: int, pixels: NDArray[Any], total: int, decoding: Decoding) -> Frame:
    photometric = dataset.PhotometricInterpretation
    if photometric in _COLOURS:
        return _colour_frame(dataset, pixels, total)
    values = _modality(dataset, index, pixels)
    is_inverted = photometric == "MONOCHROME1"
    shown = _windowed(dataset, index, values) if decoding.dicom_windows else None
    if shown is None:
        is_plain = values is pixels and values.dtype == np.uint8 and int(dataset.BitsStored) <= 8
        if not is_plain:
            return Frame(None, values, total, is_inverted)
        shown = values / (2 ** int(dataset.BitsStored) - 1)
    grey = np.rint(shown.clip(0, 1) * 255).astype(np.uint8)
    return Frame(Image.fromarray(255 - grey if is_inverted else grey), total=total)


def _colour_frame(dataset: Dataset, pixels: NDArray[Any], total: int) -> Frame:
    from pydicom.pixels.processing import apply_color_lut

    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        pixels = apply_color_lut(pixels, dataset)
        pixels = (pixels >> (8 if bits > 8 else 0)).astype(np.uint8)
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise BadImageError("the DICOM file is damaged (it lacks colours)")
    pixels = np.ascontiguousarray(pixels[..., :3])
    if pixels.dtype == np.uint8:
        return Frame(Image.fromarray(pixels), total=total)
    return Frame(None, pixels.astype(np.uint16) if pixels.dtype.itemsize == 2 else pixels, total)


def _modality(dataset: Dataset, index: int, pixels: NDArray[Any]) -> NDArray[Any]:
    """Apply rescale slope and intercept, or the modality LUT; the pixels themselves if there is none."""
    from pydicom.pixels.processing import apply_modality_lut

    functional = _functional_group(dataset, index, "PixelValueTransformationSequence")
    slope, intercept = (_first(_get(dataset, functional, name)) for name in ("RescaleSlope", "RescaleIntercept"))
    if "ModalityLUTSequence" in dataset:
        values = apply_modality_lut(pixels, dataset)
    elif (slope or 1.0, intercept or 0.0) == (1.0, 0.0):
        return pixels
    else:
        values = pixels.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)
    is_whole = bool((values == np.rint(values)).all()) and float(np.abs(values).max()) < 2**31
    return values.astype(np.int32) if is_whole else values.astype(np.float32)


def _windowed(dataset: Dataset, index: int, values: NDArray[Any]) -> NDArray[np.float64] | None:
    """Map values to [0, 1] by the VOI LUT or the first window (DICOM PS3.3 C.11.2.1.2); None if there is none."""
    from pydicom.pixels.processing import apply_voi

    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.asarray(apply_voi(values, dataset, 0) / (2**bits - 1), dtype=np.float64)
    functional = _functional_group(dataset, index, "FrameVOILUTSequence")
    center, width = (_first(_get(dataset, functional, name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    function = str(_get(dataset, functional, "VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp((-4 * (values - center) / width).clip(-500, 500))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.asarray((values - center) / width + 0.5)
    if function != "LINEAR" or width < 1:
        raise BadImageError("the DICOM file has an unsupported window; set data.intensity")
    if width == 1:
        return np.asarray(values > center - 0.5, dtype=np.float64)
    return np.asarray((values - (center - 0.5)) / (width - 1) + 0.5)


def _functional_group(dataset: Dataset, index: int, name: str) -> Dataset | None:
    """Return the item of a macro of an enhanced multi-frame file, of the frame or of all frames."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[index : index + 1], *shared[:1]]:
        items = group.get(name)
        if items:
            return items[0]  # type: ignore[no-any-return]
    return None


def _get(dataset: Dataset, functional: Dataset | None, name: str) -> Any:
    return dataset.get(name) if functional is None else functional.get(name)


def _first(value: Any) -> float | None:
    """Return a number, or the first of several; None if it is empty."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except TypeError:
        number = float(value[0])
    if not np.isfinite(number):
        raise BadImageError("the DICOM file is damaged (a number is not finite)")
    return number
