"""Small image folders, the command ``udc inspect`` in this process, and image files that Pillow cannot write."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udc_model.cli import main
from udc_model.config import DataParams, Params
from udc_model.data.packed import PackedDataset
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare


@pytest.fixture
def write_images():
    """A function that writes one small image of random pixels to each path below a folder."""
    rng = np.random.default_rng(0)

    def write(root: Path, *paths: str) -> None:
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / path, format="PNG")

    return write


@pytest.fixture
def inspected(capsys, caplog):
    """A function that runs ``udc inspect`` and returns its status, and its output or error message."""

    def run(path: Path, *settings: str) -> tuple[int, str]:
        caplog.clear()
        status = main(["inspect", str(path), *(word for setting in settings for word in ("-S", setting))])
        return status, capsys.readouterr().out or caplog.text

    return run


@pytest.fixture
def prepared(tmp_path):
    """A function that runs the stage with ``data.source: auto`` and returns the packed data set."""

    def run(path: Path, **data: object) -> PackedDataset:
        workspace = Workspace(tmp_path / "out")
        prepare(Params(data=DataParams(**{"source": "auto", "path": str(path), "image_size": 8} | data)), workspace)
        return PackedDataset.open(workspace.prepared)

    return run


def png_bytes(pixels: np.ndarray, extra_chunks: bytes = b"") -> bytes:
    """A 16-bit PNG of (H, W) grey or (H, W, 2, 3 or 4) values."""
    height, width = pixels.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = (
        png_chunk(b"IHDR", header) + extra_chunks + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff_bytes(
    *pages: np.ndarray, photometric=1, order="<", is_compressed=False, is_planar=False, extra=None, tags=()
) -> bytes:
    """A TIFF of (H, W) or (H, W, C) arrays of any type; ``tags`` are (tag, type, values) of the first page."""
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for number, page in enumerate(pages):
        is_last = number == len(pages) - 1
        more = tags if number == 0 else ()
        content += _tiff_page(page, len(content), is_last, photometric, order, is_compressed, is_planar, extra, more)
    return content


def _tiff_page(page, start, is_last, photometric, order, is_compressed, is_planar, extra, tags):
    values = page[..., None] if page.ndim == 2 else page
    height, width, channels = values.shape
    data = values.astype(values.dtype.newbyteorder(order))
    planes = [data[..., k] for k in range(channels)] if is_planar else [data]
    strips = [np.ascontiguousarray(plane).tobytes() for plane in planes]
    if is_compressed:
        strips = [zlib.compress(strip) for strip in strips]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8 * values.dtype.itemsize] * channels),
               (259, 3, [8 if is_compressed else 1]), (262, 3, [photometric]), (273, 4, [0] * len(strips)),
               (277, 3, [channels]), (278, 4, [height]), (279, 4, [len(strip) for strip in strips]),
               (284, 3, [2 if is_planar else 1]), (339, 3, [kind] * channels),
               *([(338, 3, [extra])] if extra is not None else []), *tags]  # fmt: skip
    position = start + 2 + 12 * len(entries) + 4
    encoded = {tag: _encoded(kind, value, order) for tag, kind, value in entries}
    offsets = {}
    for tag, value in encoded.items():
        if len(value) > 4:
            offsets[tag], position = position, position + len(value) + len(value) % 2
    starts = []
    for strip in strips:
        starts.append(position)
        position += len(strip) + len(strip) % 2
    if len(strips) * 4 > 4:
        encoded[273] = _encoded(4, starts, order)
    else:
        encoded[273] = struct.pack(order + "I", starts[0])
    page_bytes, tail = struct.pack(order + "H", len(entries)), b""
    for tag, kind, value in sorted(entries):
        page_bytes += struct.pack(order + "HHI", tag, kind, len(value))
        if tag in offsets:
            page_bytes += struct.pack(order + "I", offsets[tag])
        else:
            page_bytes += encoded[tag].ljust(4, b"\0")
    for tag in offsets:
        tail += encoded[tag] + b"\0" * (len(encoded[tag]) % 2)
    page_bytes += struct.pack(order + "I", 0 if is_last else position)
    return page_bytes + tail + b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)


def _encoded(kind, values, order):
    if kind in (1, 2, 7):
        return bytes(values)
    return b"".join(struct.pack(order + {3: "H", 4: "I"}[kind], value) for value in values)


@pytest.fixture
def png():
    return png_bytes


@pytest.fixture
def chunk():
    return png_chunk


@pytest.fixture
def tiff():
    return tiff_bytes


def icc_profile(space: bytes, tags: dict[bytes, bytes], device=b"mntr", pcs=b"XYZ ") -> bytes:
    """An ICC profile of version 2.4 (ICC.1:2004-10 has the same layout)."""
    table, data, position = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", position, len(content))
        data += content
        position += len(content)
    header = struct.pack(">I4sI4s4s4s", position, b"lcms", 0x02400000, device, space, pcs)
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp").ljust(44, b"\0") + struct.pack(
        ">3i", 63190, 65536, 54061
    )
    return header.ljust(128, b"\0") + table + data


def _text(text: bytes) -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))


WHITE = _xyz(0.9642, 1.0, 0.8249)


def rgb_profile(primaries, gamma: float) -> bytes:
    """A profile with a matrix: the rows of ``primaries`` are the XYZ of red, green and blue under D50."""
    colours = {name: _xyz(*row) for name, row in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma))
    return icc_profile(b"RGB ", {b"desc": _text(b"test"), b"wtpt": WHITE, **colours, **curves})


def grey_profile(gamma: float) -> bytes:
    """A profile of grey with a power law."""
    return icc_profile(b"GRAY", {b"desc": _text(b"test"), b"wtpt": WHITE, b"kTRC": _gamma(gamma)})


def cmyk_profile(lab_of_corner) -> bytes:
    """A profile with a table of the corners of CMYK; ``lab_of_corner`` maps c, m, y, k (0 or 1) to encoded L, a, b."""
    ramp = bytes(range(256))
    corners = b"".join(bytes(lab_of_corner(*map(int, f"{k:04b}"))) for k in range(16))
    identity = struct.pack(">9i", *(65536 * (k % 4 == 0) for k in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * ramp + corners + 3 * ramp
    tags = {b"desc": _text(b"test"), b"wtpt": WHITE, b"A2B0": table, b"A2B1": table}
    return icc_profile(b"CMYK", tags, device=b"prtr", pcs=b"Lab ")


@pytest.fixture
def profiles():
    """Functions that make ICC profiles: rgb, grey, cmyk."""
    from types import SimpleNamespace

    return SimpleNamespace(rgb=rgb_profile, grey=grey_profile, cmyk=cmyk_profile)
