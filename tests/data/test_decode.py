"""Tests of image decoding: every mode gives correct RGB, every kind of damage gives a reason."""

import contextlib
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from udc_model.data.decode import decode, decode_frames
from udc_model.data.formats import BadImageError
from udc_model.data.transforms import Decoding

LIMIT = Decoding(max_pixels=1_000_000)


def _png_header(width, height):
    """A PNG whose header states a size and whose data is only 1000 bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return np.asarray(decode(tmp_path / name, LIMIT))


def test_rgb_and_grey_are_unchanged(tmp_path, rng):
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (_saved(tmp_path, Image.fromarray(pixels)) == pixels).all()
    grey = pixels[..., 0]
    assert (_saved(tmp_path, Image.fromarray(grey)) == grey[..., None]).all()


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to show
    shown = _saved(tmp_path, image, exif=exif)
    assert shown.shape == (4, 2, 3)
    assert tuple(shown[0, 1]) == (255, 0, 0)


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert _saved(tmp_path, Image.fromarray(values))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert _saved(tmp_path, Image.fromarray(values), "a.tif")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_images_are_composited_on_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))  # hidden red
    rgba.putpixel((1, 0), (0, 0, 0, 255))
    assert _saved(tmp_path, rgba)[0].tolist() == [[255, 255, 255], [0, 0, 0]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert _saved(tmp_path, palette, transparency=0)[0].tolist() == [[255, 255, 255], [0, 255, 0]]
    assert _saved(tmp_path, palette)[0].tolist() == [[255, 0, 0], [0, 255, 0]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert _saved(tmp_path, grey)[0].tolist() == [[255, 255, 255]]


def test_bilevel_and_cmyk_are_converted(tmp_path):
    assert _saved(tmp_path, Image.new("1", (1, 1), 1))[0, 0].tolist() == [255, 255, 255]
    cmyk = _saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg", quality=95)[0, 0]
    assert cmyk[0] > 240
    assert cmyk[1:].max() < 15


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a drawing"),
        (_png_header(50_000, 50_000), r"50000 x 50000 pixels is more than data.max_pixels"),
        (_png_header(50, 50), "damaged"),
    ],
)
def test_unusable_image_raises_with_its_reason(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadImageError, match=reason):
        decode(tmp_path / "a.png", LIMIT)


def test_truncated_image_raises(tmp_path, rng):
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif"):
        image.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        decode(tmp_path / name, LIMIT)
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(BadImageError):
            decode(tmp_path / name, LIMIT)


def test_animation_and_float_pixels_raise(tmp_path, rng):
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImageError, match="3 frames"):
        decode(tmp_path / "a.gif", LIMIT)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImageError, match=r"have no range; set data\.intensity"):
        decode(tmp_path / "a.tif", LIMIT)


def test_missing_file_raises(tmp_path):
    with pytest.raises(BadImageError, match="No such file"):
        decode(tmp_path / "a.png", LIMIT)


def test_random_damage_gives_an_image_or_bad_image_error(tmp_path, rng):
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.bmp"):
        image.save(tmp_path / name)
        content = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 8)] = rng.integers(0, 256, 8)
            with contextlib.suppress(BadImageError):
                decode(damaged.tobytes(), LIMIT)


def test_settings_of_pillow_and_warnings_are_restored_after_the_last_of_several_decodings(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    first, second = (decode_frames(tmp_path / "a.png", LIMIT) for _ in range(2))
    next(first)
    next(second)
    first.close()
    assert Image.MAX_IMAGE_PIXELS is None  # the second one still decodes
    second.close()
    assert limit == Image.MAX_IMAGE_PIXELS
    assert list(warnings.filters) == filters


def test_settings_that_another_program_changes_meanwhile_are_its_own(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    filters = list(warnings.filters)
    frames = decode_frames(tmp_path / "a.png", LIMIT)
    next(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        Image.MAX_IMAGE_PIXELS = 2000
        frames.close()
        assert list(warnings.filters)[1:] == filters
    assert list(warnings.filters) == filters
    assert Image.MAX_IMAGE_PIXELS == 2000


def test_warnings_about_metadata_are_ignored_while_an_image_is_decoded(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    frames = decode_frames(tmp_path / "a.png", LIMIT)
    next(frames)
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("harmless", stacklevel=1)
    assert not caught
    frames.close()
