"""Tests of hostile files: sizes are bounded before pixels are decoded, texts and numbers of frames too."""

import io
import struct
import sys
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from udc_model.data.decode import decode, decode_frames
from udc_model.data.formats import BadImageError
from udc_model.data.transforms import Decoding

LIMIT = Decoding(max_pixels=1_000_000)


@contextmanager
def at_most(calls):
    """The block makes at most this many calls of functions; unlike seconds, they do not depend on other processes."""
    counted = 0

    def count(_frame, event, _function):
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert counted <= calls


def _encoded(form, size=(8, 8), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, form, **options)
    return buffer.getvalue()


def _with_size(form):
    """A small file whose header states a huge size."""
    content = bytearray(_encoded(form))
    if form == "JPEG":
        start = content.index(b"\xff\xc0")
        content[start + 5 : start + 9] = b"\xff\xdc\xff\xdc"
    elif form == "GIF":
        content[6:10] = b"\xff\xff\xff\xff"
    elif form == "BMP":
        content[18:26] = struct.pack("<ii", 2_000_000, 2_000_000)
    elif form == "PPM":
        content = bytearray(b"P6 2000000 2000000 255\n123")
    elif form == "JPEG2000":
        for marker, offset in ((b"ihdr", 4), (b"\xff\x51", 6)):
            start = content.index(marker) + offset
            content[start : start + 8] = struct.pack(">II", 2_000_000, 2_000_000)
    elif form == "AVIF":
        start = content.index(b"ispe") + 8
        content[start : start + 8] = struct.pack(">II", 16_000, 16_000)
    return bytes(content)


@pytest.mark.parametrize("form", ["JPEG", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_size_in_the_header_is_checked_first(form):
    content = _with_size(form)
    with at_most(10_000), pytest.raises(BadImageError, match=r"pixels is more than data\.max_pixels|damaged") as error:
        decode(content, LIMIT)
    if form != "AVIF":  # its decoder compares the sizes of container and picture itself
        assert "more than data.max_pixels" in str(error.value)


def test_size_of_tiff_and_png_and_webp(tiff, chunk):
    content = tiff(np.zeros((2, 2), np.uint8)).replace(
        struct.pack("<HHII", 256, 4, 1, 2), struct.pack("<HHII", 256, 4, 1, 10**9)
    )
    with pytest.raises(BadImageError, match="more than data"):
        decode(content, LIMIT)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0))
    with pytest.raises(BadImageError, match="more than data"):
        decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""), LIMIT)
    with pytest.raises(BadImageError, match="more than data"):
        decode(_encoded("WEBP", (2000, 1000), lossless=True), LIMIT)


def test_every_frame_is_checked(tiff):
    content = tiff(np.zeros((2, 2), np.uint8), np.zeros((2000, 1000), np.uint8))
    frames = decode_frames(content, Decoding(frames="each", max_pixels=1_000_000))
    next(frames)
    with pytest.raises(BadImageError, match="1000 x 2000 pixels is more than"):
        next(frames)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_text_of_a_png_is_bounded(kind, chunk, monkeypatch):
    """64 MB of zeros in 64 kB, many times."""
    bomb = zlib.compress(bytes(2**26))
    data = {b"zTXt": b"a\0\0" + bomb, b"iTXt": b"a\0\1\0\0\0" + bomb, b"iCCP": b"a\0\0" + bomb}[kind]
    content = _encoded("PNG")
    content = content[:33] + 20 * chunk(kind, data) + content[33:]
    read = []
    original = zlib.decompressobj

    def counting(*arguments):
        decompressor = original(*arguments)

        class Counting:
            def decompress(self, *options):
                out = decompressor.decompress(*options)
                read.append(len(out))
                return out

            def __getattr__(self, name):
                return getattr(decompressor, name)

        return Counting()

    monkeypatch.setattr("zlib.decompressobj", counting)
    try:
        decode(content, LIMIT)
    except BadImageError as error:
        assert "too large" in str(error).lower() or "damaged" in str(error)  # noqa: PT017
    assert sum(read) <= 65 * 2**20


def _gif(n_frames):
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * n_frames + b";"


@pytest.mark.slow
@pytest.mark.parametrize("frames", ["error", "first", "each"])
def test_gif_with_a_million_frames(frames):
    content = _gif(1_000_000)
    if frames == "first":
        with at_most(10_000):
            assert decode(content, Decoding(frames="first")).size == (1, 1)
        return
    with at_most(10**6), pytest.raises(BadImageError, match=r"more than (1,000|10,000) frames"):
        decode(content, Decoding(frames=frames))


@pytest.mark.slow
@pytest.mark.parametrize("frames", ["error", "first", "each"])
def test_tiff_with_thousands_of_pages(frames, tiff):
    page = tiff(np.zeros((1, 1), np.uint8))
    size, content = len(page) - 8, bytearray(page[:8])
    next_offset = 8 + 2 + 12 * 11
    for number in range(12_000):
        copy = bytearray(page[8:])
        struct.pack_into("<I", copy, next_offset - 8, 8 + (number + 1) * size)
        content += copy
    if frames == "first":
        with at_most(10_000):
            assert decode(bytes(content), Decoding(frames="first")).size == (1, 1)
        return
    with at_most(10**7), pytest.raises(BadImageError, match=r"more than (1,000|10,000) frames"):
        decode(bytes(content), Decoding(frames=frames))


def test_pages_in_a_circle_end(tiff):
    content = bytearray(tiff(np.zeros((1, 1), np.uint8)))
    struct.pack_into("<I", content, 8 + 2 + 12 * 11, 8)
    assert decode(bytes(content), Decoding(frames="each")).size == (1, 1)
