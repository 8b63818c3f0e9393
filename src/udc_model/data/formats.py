"""Image formats by their first bytes: which are decoded, and how to convert the others.

Nothing is imported from an image library, so that a source can be listed quickly.
"""

from __future__ import annotations

from pathlib import PurePath

HEAD_BYTES = 512  # bytes from the start of a file that decide its format; DICOM and NIfTI have theirs at 128 and 344

# Suffixes of the formats below. They only choose the files of a folder; the content decides how a file is decoded.
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
    ".heic", ".heif", ".hif", ".dcm", ".dicom",
})  # fmt: skip

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("JPEG", (b"\xff\xd8\xff",)),
    ("PNG", (b"\x89PNG\r\n\x1a\n",)),
    ("GIF", (b"GIF87a", b"GIF89a")),
    ("TIFF", _TIFF),
    ("JPEG2000", (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_JPEG_LS_HEAD, _CR2_MARK = b"\xff\xd8\xff\xf7", b"CR\x02\0"  # in files that begin like a JPEG and a TIFF
_WHITESPACE = b" \t\r\n\v\f#"

# Formats that are recognised but not decoded. Each advice completes "it is …".
_PHOTO = "a camera raw file, which must be developed first; export it as TIFF (darktable-cli, RawTherapee)"
_SLIDE = "a whole-slide image, which is too large for one input; cut it into tiles with OpenSlide or QuPath"
_DRAWING = "a drawing without pixels; render it as PNG (inkscape, pdftoppm, ghostscript)"
_VIDEO = "a video; extract its frames as PNG (ffmpeg -i FILE frame%05d.png)"
_LAYERS = "a file with layers; export it as PNG or TIFF from the program that wrote it"
_VOLUME = "a NIfTI volume; export its slices as 16-bit PNG (nibabel, med2image)"
_OTHER = "in a format that is not supported; convert it to PNG or TIFF (magick FILE FILE.png)"
_JXL = "in JPEG XL; convert it to PNG, or back to the JPEG it was made from (djxl FILE FILE.png)"
_JPEG_LS = "in JPEG-LS; convert it to PNG (ffmpeg -i FILE FILE.png)"
_NO_PREAMBLE = "a DICOM file without its preamble, or damaged; rewrite it (dcmconv FILE FILE)"
_ARRAY = "an array, not an image file; save each image as PNG or TIFF"
_ADVICE_BY_CONTENT: tuple[tuple[int, bytes, str], ...] = (  # position, bytes, advice
    (0, b"\xff\x0a", _JXL),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", _JXL),
    (0, _JPEG_LS_HEAD, _JPEG_LS),
    (8, _CR2_MARK, _PHOTO),
    (0, b"HEAPCCDR", _PHOTO),
    (0, b"FUJIFILMCCD-RAW", _PHOTO),
    (0, b"IIRO", _PHOTO),
    (0, b"IIRS", _PHOTO),
    (0, b"MMOR", _PHOTO),
    (0, b"IIU\0", _PHOTO),
    (0, b"FOVb", _PHOTO),
    (0, b"\0MRM", _PHOTO),
    (0, b"ZISRAWFILE", _SLIDE),
    (0, b"8BPS", _LAYERS),
    (0, b"gimp xcf", _LAYERS),
    (0, b"%!PS", _DRAWING),
    (0, b"\xc5\xd0\xd3\xc6", _DRAWING),
    (0, b"%PDF", _DRAWING),
    (344, b"n+1\0", _VOLUME),
    (344, b"ni1\0", _VOLUME),
    (4, b"n+2\0", _VOLUME),
    (0, b"\x1aE\xdf\xa3", _VIDEO),
    (0, b"\0\0\x01\xba", _VIDEO),
    (0, b"FLV\x01", _VIDEO),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),
    (0, b"v/1\x01", _OTHER),  # OpenEXR
    (0, b"#?RADIANCE", _OTHER),
    (0, b"SIMPLE  =", _OTHER),  # FITS
    (0, b"qoif", _OTHER),
    (0, b"DDS ", _OTHER),
    (0, b"icns", _OTHER),
    (0, b"\0\0\x01\0", _OTHER),  # ICO
    (0, b"II\xbc\x01", _OTHER),  # JPEG XR
    (0, b"P7\n", _OTHER),  # PAM
    (0, b"\x89HDF\r\n", _ARRAY),
    (0, b"\x93NUMPY", _ARRAY),
    (0, b"MATLAB 5.0", _ARRAY),
)
_ADVICE_BY_SUFFIX = {
    **dict.fromkeys((".dng", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".cr2", ".cr3", ".orf", ".rw2", ".pef", ".raf",
                     ".3fr", ".erf", ".srw", ".iiq", ".rwl", ".kdc", ".dcr"), _PHOTO),
    **dict.fromkeys((".dcm", ".dicom"), _NO_PREAMBLE),
    **dict.fromkeys((".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vsi", ".czi", ".qptiff"), _SLIDE),
}  # fmt: skip


class BadImageError(ValueError):
    """An image that cannot be used. The message is the reason, without the path."""


def image_format(head: bytes) -> str | None:
    """Return the format of an image that this project decodes, by content.

    Parameters
    ----------
    head : the first `HEAD_BYTES` bytes of a file, or all if it is shorter.

    Returns
    -------
    ``JPEG``, ``PNG``, ``GIF``, ``TIFF``, ``WEBP``, ``BMP``, ``PPM`` (PGM, PBM and PFM too), ``JPEG2000``, ``AVIF``,
    ``HEIF`` (extra ``[heif]``) or ``DICOM`` (extra ``[dicom]``); None for anything else.
    """
    if head[128:132] == b"DICM":  # the bytes before it may be the header of a TIFF
        return "DICOM"
    for name, signatures in _SIGNATURES:
        if head.startswith(signatures):
            return None if head.startswith(_JPEG_LS_HEAD) or head[8:12] == _CR2_MARK else name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[14:15] in (b"\x0c", b"(", b"4", b"8", b"@", b"l", b"|"):  # size of the next header
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456fF" and head[2:3] in _WHITESPACE and len(head) > 2:
        return "PPM"
    brands = _brands(head)
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def conversion_advice(head: bytes, name: str) -> str | None:
    """Return how to convert an image that is recognised but not supported, as one sentence; None for other files.

    Parameters
    ----------
    head : the first `HEAD_BYTES` bytes of a file.
    name : the file's name. Its suffix only decides where the content does not, as for camera raw files and whole
        slides that are TIFF files.
    """
    form, suffix = image_format(head), PurePath(name).suffix.lower()
    if form not in (None, "TIFF") and suffix != ".mrxs":
        return None
    advice = _advice_by_content(head) if form is None else None
    if advice is None:
        advice = _ADVICE_BY_SUFFIX.get(suffix)
    if advice is None and name.lower().endswith(".nii.gz") and head[:2] == b"\x1f\x8b":
        advice = _VOLUME
    return None if advice is None else f"it is {advice}"


def _advice_by_content(head: bytes) -> str | None:
    for position, signature, advice in _ADVICE_BY_CONTENT:
        if head.startswith(signature, position):
            return advice
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return _DRAWING
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _VIDEO
    brands = _brands(head)
    if b"crx " in brands:
        return _PHOTO  # Canon CR3
    is_still = brands & (_AVIF_BRANDS | _HEIF_BRANDS | {b"mif1", b"msf1"})
    return _VIDEO if brands and not is_still else None


def _brands(head: bytes) -> set[bytes]:
    """Return the brands of an ISO media file (HEIF, AVIF, MP4, …): the major and the compatible ones."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12]} | {head[k : k + 4] for k in range(16, end - 3, 4)}
