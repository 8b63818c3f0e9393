"""Damaged images of every format: an image or a reason, never another error, within bounded time and memory.

``UDC_FUZZ_IMAGES=2000 python -m pytest tests/data/test_fuzz_images.py`` decodes 2,000 instead of 120.
"""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from udc_model.config import DataParams, Params
from udc_model.data.decode import decode_frames, to_channels
from udc_model.data.formats import BadImageError
from udc_model.data.transforms import Decoding
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare

N_IMAGES = int(os.environ.get("UDC_FUZZ_IMAGES", "120"))
MAX_SECONDS, MAX_BYTES = 5.0, 2**30
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXTREME = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff", b"\0\1\0\0", b"\x80\0\0\0")


def _seeds(tiff, png) -> dict[str, bytes]:
    """A valid file of each kind."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image, deep = Image.fromarray(pixels), rng.integers(0, 4096, (24, 24)).astype(np.uint16)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - pixels), image.rotate(90)]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "description"
    written = {
        "jpeg": ("JPEG", image, {"exif": exif, "icc_profile": PROFILE}),
        "progressive jpeg": ("JPEG", image, {"progressive": True, "comment": b"x"}),
        "cmyk jpeg": ("JPEG", image.convert("CMYK"), {}),
        "png": ("PNG", image, {"exif": exif, "icc_profile": PROFILE, "dpi": (9, 9)}),
        "palette png": ("PNG", image.quantize(16), {"transparency": 3}),
        "apng": ("PNG", image, frames | {"duration": 10}),
        "gif": ("GIF", image, frames),
        "webp": ("WEBP", image, {"exif": exif, "icc_profile": PROFILE}),
        "lossless webp": ("WEBP", image.convert("RGBA"), {"lossless": True}),
        "animated webp": ("WEBP", image, frames),
        "bmp": ("BMP", image, {}),
        "ppm": ("PPM", image, {}),
        "tiff": ("TIFF", image, frames | {"exif": exif, "icc_profile": PROFILE}),
        "lzw tiff": ("TIFF", image, {"compression": "tiff_lzw"}),
        "jpeg tiff": ("TIFF", image, {"compression": "jpeg"}),
        "fax tiff": ("TIFF", image.convert("1"), {"compression": "group4"}),
        "jp2": ("JPEG2000", image, {}),
        "deep jp2": ("JPEG2000", Image.fromarray(deep), {"irreversible": False}),
        "tiled jp2": ("JPEG2000", image, {"tile_size": (8, 8), "no_jp2": True}),
        "avif": ("AVIF", image, {"exif": exif}),
        "animated avif": ("AVIF", image, frames),
    }
    seeds = {}
    for name, (form, picture, options) in written.items():
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        seeds[name] = buffer.getvalue()
    seeds |= {
        "deep png": png(deep), "16-bit rgb png": png(pixels.astype(np.uint16) * 257),
        "16-bit rgb tiff": tiff(pixels.astype(np.uint16), photometric=2), "planar tiff": tiff(pixels.astype(np.uint16),
        photometric=2, is_planar=True), "float tiff": tiff(deep.astype(np.float32), deep.astype(np.float32)),
        "deflate tiff": tiff(deep, order=">", is_compressed=True), "pgm": b"P2 2 2 4095\n1 2 3 4000\n",
        "pfm": b"Pf 2 1 -1.0\n" + np.array([0.5, 1], "<f4").tobytes(), "pbm": b"P4 8 2\n\xaa\x55",
    }  # fmt: skip
    return seeds | _optional_seeds(image)


def _optional_seeds(image) -> dict[str, bytes]:
    seeds = {}
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
        buffer = io.BytesIO()
        image.save(buffer, "HEIF")
        seeds["heic"] = buffer.getvalue()
    try:
        import pydicom
    except ImportError:
        return seeds
    folder = Path(pydicom.data.__file__).parent / "test_files"
    names = ("CT_small", "MR_small_RLE", "MR_small_jp2klossless", "SC_rgb_small_odd_jpeg", "examples_palette")
    return seeds | {f"{name}.dcm": (folder / f"{name}.dcm").read_bytes() for name in names}


def _damaged(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, replace bytes, write extreme numbers, cut, repeat or splice; most often near the start."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        end = len(data) if rng.random() < 0.5 else min(len(data), 400)
        position = int(rng.integers(0, max(1, end)))
        match int(rng.integers(0, 7)):
            case 0:
                for k in rng.integers(0, max(1, end), 8):
                    data[k : k + 1] = bytes([data[k] ^ (1 << int(rng.integers(0, 8)))]) if data else b""
            case 1:
                data[position : position + 4] = rng.bytes(4)
            case 2:
                extreme = EXTREME[int(rng.integers(0, len(EXTREME)))]
                data[position : position + len(extreme)] = extreme
            case 3:
                del data[max(1, position) :]
            case 4:
                data[position:position] = data[position : position + int(rng.integers(1, 200))]
            case 5:
                data[position:] = other[position:]
            case 6:
                data[position : position + 40] = bytes(40)
    return bytes(data)


def _decode_all(content: bytes) -> None:
    decoding = Decoding(frames="each", intensity=(0, 65535))
    for frame in decode_frames(content, decoding):
        to_channels(frame.to_image(decoding.intensity), 3)


def _peak_bytes(reset: bool = False) -> int:
    """Return the largest resident memory of this process since the last reset, or 0 where Linux does not report it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def test_damaged_images_end_with_an_image_or_a_reason(tiff, png):
    seeds = _seeds(tiff, png)
    names, rng = list(seeds), np.random.default_rng(1)
    slowest, largest, n_bad = (0.0, ""), (0, ""), 0
    for content in seeds.values():
        _decode_all(content)
    for number in range(N_IMAGES):
        name, other = names[number % len(names)], names[int(rng.integers(len(names)))]
        content = _damaged(seeds[name], seeds[other], rng)
        before, started = _peak_bytes(reset=True), time.process_time()
        try:
            _decode_all(content)
        except BadImageError as error:
            n_bad += 1
            assert str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        slowest = max(slowest, (time.process_time() - started, f"{name} {number}"))
        largest = max(largest, (_peak_bytes() - before if before else 0, f"{name} {number}"))
    print(f"{N_IMAGES} images, {n_bad} refused; slowest {slowest}, largest {largest}")  # noqa: T201
    assert n_bad > N_IMAGES / 4
    assert slowest[0] < MAX_SECONDS
    assert largest[0] < MAX_BYTES


def test_prepare_names_every_damaged_file(tmp_path, tiff, png):
    seeds, rng = _seeds(tiff, png), np.random.default_rng(2)
    bad = set()
    for number, (name, content) in enumerate(seeds.items()):
        path = tmp_path / "raw" / "ab"[number % 2] / f"{name}.png".replace(" ", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        damaged = _damaged(content, b"", rng)
        path.write_bytes(damaged)
        try:
            _decode_all(damaged)
        except BadImageError:
            bad.add(path.relative_to(tmp_path / "raw").as_posix())
    params = DataParams(source="folder", path=str(tmp_path / "raw"), image_size=8, frames="each",
                        intensity={"min": 0.0, "max": 4095.0})  # fmt: skip
    with pytest.raises(UdcError) as error:
        prepare(Params(data=params), Workspace(tmp_path / "out"))
    listed = {line.strip().split(": ")[0].split("#")[0] for line in str(error.value).split("\n")[1:-1]}
    assert listed >= bad
    assert len(bad) > 5
