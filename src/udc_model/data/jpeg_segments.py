"""Removes from the bytes of a JPEG what its pixels do not need: position, camera, comments, previews."""

from __future__ import annotations

_START, _SCAN, _END = b"\xff\xd8", 0xDA, b"\xff\xd9"
_JFIF, _ICC, _ADOBE = 0xE0, 0xE2, 0xEE  # application segments that decide colours
_COMMENT = 0xFE


def without_metadata(jpeg: bytes) -> bytes | None:
    """A JPEG without the segments that do not describe pixels (ITU-T T.81, annex B); its compressed data stay the same.

    The orientation in the EXIF segment is removed too, so the decoded pixels have to be compared.

    Returns
    -------
    None if the file is not a plain sequence of segments and one image, as one with another image behind it.
    """
    if not jpeg.startswith(_START):
        return None
    parts, position = [_START], 2
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if marker == _SCAN:
            rest = jpeg[position:]
            return b"".join(parts) + rest if rest.endswith(_END) and rest.count(_END) == 1 else None
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if _is_needed(marker, jpeg[position + 4 : end]):
            parts.append(jpeg[position:end])
        position = end
    return None


def _is_needed(marker: int, payload: bytes) -> bool:
    if marker == _ICC:
        return payload.startswith(b"ICC_PROFILE\0")
    if marker == _JFIF:
        return payload.startswith(b"JFIF\0") and len(payload) == 14  # without a preview
    return marker == _ADOBE or not (_JFIF <= marker <= 0xEF or marker == _COMMENT)
