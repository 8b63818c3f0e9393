"""Tests of the values that are decoded from unusual files, against the values that were written."""

import io

import numpy as np
import pytest
from PIL import Image

from udc_model.data.decode import decode, decode_frames
from udc_model.data.formats import BadImageError
from udc_model.data.transforms import Decoding

VALUES = np.array([[0, 1, 255, 256], [4095, 4096, 32768, 65535]], dtype=np.uint16)
COLOURS = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 2747 + 13


def _deep(content, **decoding):
    return next(decode_frames(content, Decoding(**decoding)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize(
    "values",
    [VALUES, (VALUES.astype(np.int32) - 30000).astype(np.int16), VALUES.astype(np.int32) * 1000 - 7,
     VALUES.astype(np.float32) / 7 - 5],
    ids=lambda values: str(values.dtype),
)  # fmt: skip
def test_tiff_values_are_those_that_were_written(tiff, values, order, is_compressed):
    frame = _deep(tiff(values, order=order, is_compressed=is_compressed))
    assert frame.deep.tolist() == values.tolist()


def test_unsigned_32_bit_tiff(tiff):
    values = np.array([[0, 70000, 4_000_000_000]], np.uint32)
    assert _deep(tiff(values)).deep.tolist() == values.tolist()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_16_bit_colours_keep_all_bits(tiff, png, order, is_compressed):
    assert (
        _deep(tiff(COLOURS, photometric=2, order=order, is_compressed=is_compressed)).deep.tolist() == COLOURS.tolist()
    )
    assert _deep(png(COLOURS)).deep.tolist() == COLOURS.tolist()


def test_16_bit_colours_in_planes(tiff):
    for order in "<>":
        content = tiff(COLOURS, photometric=2, order=order, is_planar=True)
        assert _deep(content).deep.tolist() == COLOURS.tolist()
    with pytest.raises(BadImageError, match="16-bit colours in compressed planes"):
        _deep(tiff(COLOURS, photometric=2, is_planar=True, is_compressed=True))


def test_16_bit_colours_are_rounded_not_truncated(png):
    expected = np.rint(COLOURS / 65535 * 255)
    assert (expected != COLOURS >> 8).any()
    assert (np.asarray(decode(png(COLOURS), Decoding())) == expected).all()
    assert (
        np.asarray(decode(png(COLOURS >> 4), Decoding(intensity=(0, 4095)))) == np.rint((COLOURS >> 4) / 4095 * 255)
    ).all()


def test_16_bit_transparency(png, tiff, chunk):
    rgba = np.dstack([COLOURS, np.full((2, 4), 65535, np.uint16)])
    rgba[0, 0, 3] = 0
    expected = np.rint(COLOURS / 65535 * 255)
    expected[0, 0] = 255
    assert (np.asarray(decode(png(rgba), Decoding())) == expected).all()
    assert (np.asarray(decode(tiff(rgba, photometric=2, extra=2), Decoding())) == expected).all()
    grey = np.asarray(decode(png(rgba[..., [0, 3]]), Decoding(1)))
    assert (grey == expected[..., 0]).all()
    key = chunk(b"tRNS", COLOURS[0, 0].astype(">u2").tobytes())
    assert (np.asarray(decode(png(COLOURS, key), Decoding())) == expected).all()
    key = chunk(b"tRNS", VALUES[0, :1].astype(">u2").tobytes())
    assert np.asarray(decode(png(VALUES, key), Decoding(1))).tolist() == [[255, 0, 1, 1], [16, 16, 128, 255]]


def test_min_is_white(tiff):
    assert np.asarray(decode(tiff(VALUES, photometric=0), Decoding(1))).tolist() == [
        [255, 255, 254, 254],
        [239, 239, 127, 0],
    ]
    eight = np.array([[0, 1, 255]], np.uint8)
    assert np.asarray(decode(tiff(eight, photometric=0), Decoding(1))).tolist() == [[255, 254, 0]]
    floats = tiff(np.array([[0.0, 0.25, 1.0]], np.float32), photometric=0)
    assert np.asarray(decode(floats, Decoding(1, intensity=(0, 1)))).tolist() == [[255, 191, 0]]


def test_pgm_of_any_depth():
    header = b"P5 4 1 %d\n"
    for largest in (1023, 4095, 65535):
        values = np.array([[0, 1, largest // 2, largest]], np.uint16)
        assert _deep(header % largest + values.astype(">u2").tobytes()).deep.tolist() == values.tolist()
    assert _deep(b"P2 3 1 4095\n0 17 4095\n").deep.tolist() == [[0, 17, 4095]]
    pfm = _deep(b"Pf 2 1 -1.0\n" + np.array([0.5, 1], "<f4").tobytes())
    assert pfm.deep.tolist() == [[0.5, 1.0]]


def test_deep_jpeg_2000():
    buffer = io.BytesIO()
    Image.fromarray(VALUES.repeat(8, 0).repeat(8, 1)).save(buffer, "JPEG2000", irreversible=False)
    assert (_deep(buffer.getvalue()).deep == VALUES.repeat(8, 0).repeat(8, 1)).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(form, orientation, tmp_path):
    """Pillow's own function gives the reference."""
    from PIL import ImageOps

    image = Image.new("RGB", (32, 16), "white")
    image.paste((255, 0, 0), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a", form, exif=exif)
    with Image.open(tmp_path / "a") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    decoded = np.asarray(decode(tmp_path / "a", Decoding()))
    assert (decoded == expected).all()
    assert decoded.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))


def test_orientation_of_deep_images(tiff, png, chunk):
    content = tiff(VALUES, tags=[(274, 3, [6])])
    assert _deep(content).deep.tolist() == np.rot90(VALUES, -1).tolist()
    content = tiff(COLOURS, photometric=2, tags=[(274, 3, [8])])
    assert _deep(content).deep.tolist() == np.rot90(COLOURS).tolist()


def test_palettes_bilevel_and_grey_with_alpha(tmp_path, tiff):
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for name in ("a.png", "a.gif", "a.bmp", "a.tif"):
        palette.save(tmp_path / name)
        assert np.asarray(decode(tmp_path / name, Decoding()))[0].tolist() == [[255, 0, 0], [0, 255, 0]]
    Image.new("1", (3, 1), 1).save(tmp_path / "b.tif")
    assert np.asarray(decode(tmp_path / "b.tif", Decoding(1))).tolist() == [[255, 255, 255]]
    grey_alpha = Image.fromarray(np.array([[[10, 255], [10, 0], [100, 51]]], np.uint8), "LA")
    grey_alpha.save(tmp_path / "c.png")
    assert np.asarray(decode(tmp_path / "c.png", Decoding(1))).tolist() == [[10, 255, 224]]


def test_rgb_with_a_transparent_colour_is_composited_on_white(tmp_path):
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert np.asarray(decode(tmp_path / "a.png", Decoding())).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_large_transparent_image_equals_pillows_result(rng, monkeypatch, tmp_path):
    from udc_model.data import colour

    monkeypatch.setattr(colour, "_STRIP_PIXELS", 100)
    rgba = Image.fromarray(rng.integers(0, 256, (37, 23, 4), dtype=np.uint8))
    rgba.save(tmp_path / "a.png")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    assert (np.asarray(decode(tmp_path / "a.png", Decoding())) == expected).all()


def test_channels(tmp_path, rng):
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    grey = decode(tmp_path / "a.png", Decoding(1))
    assert grey.mode == "L"
    np.testing.assert_allclose(np.asarray(grey), pixels @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize("name", ["a.txt", "a.jpg", "a", "a.tif"])
def test_content_decides_not_the_suffix(tmp_path, rng, name):
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, "PNG")
    assert (np.asarray(decode(tmp_path / name, Decoding())) == pixels).all()


def test_avif_jpeg_2000_and_heic(tmp_path):
    pixels = np.full((32, 48, 3), (200, 50, 20), np.uint8)
    pixels[:, 24:] = (10, 90, 220)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.avif", quality=100)
    image.save(tmp_path / "a.jp2", irreversible=False)
    names = ["a.avif", "a.jp2"]
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
        image.save(tmp_path / "a.heic", quality=100)
        names.append("a.heic")
    for name in names:
        decoded = np.asarray(decode(tmp_path / name, Decoding())).astype(int)
        assert np.abs(decoded - pixels)[:, [0, 10, 40]].max() <= 4, name


def test_missing_extra_is_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(BadImageError, match=r"^HEIC needs an extra; pip install 'udc-model\[heif\]'$"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Decoding())
    with pytest.raises(BadImageError, match=r"^DICOM needs an extra; pip install 'udc-model\[dicom\]'$"):
        decode(b"\0" * 128 + b"DICM", Decoding())


def test_raw_and_slides_in_tiff_files_are_recognised_by_their_tags(tiff):
    page = np.zeros((4, 4), np.uint8)
    with pytest.raises(BadImageError, match="camera raw"):
        decode(tiff(page, tags=[(50706, 1, [1, 4, 0, 0])]), Decoding())
    with pytest.raises(BadImageError, match="camera raw"):
        decode(tiff(page, tags=[(254, 4, [1]), (330, 4, [8])]), Decoding())
    with pytest.raises(BadImageError, match="OpenSlide"):
        decode(tiff(page, tags=[(270, 2, b"Aperio Image Library v11\0")]), Decoding())


def test_advice_by_suffix(tmp_path, tiff):
    (tmp_path / "a.nef").write_bytes(tiff(np.zeros((4, 4), np.uint8)))
    with pytest.raises(BadImageError, match="camera raw file, which must be developed"):
        decode(tmp_path / "a.nef", Decoding())


@pytest.mark.parametrize("bits", ["64-bit floats", "colour floats"])
def test_values_that_pillow_does_not_read_are_refused_with_advice(tiff, bits):
    values = np.zeros((2, 2), np.float64) if bits.startswith("64") else np.zeros((2, 2, 3), np.float32)
    with pytest.raises(BadImageError, match="kind of pixels that is not supported"):
        decode(tiff(values, photometric=1 if values.ndim == 2 else 2), Decoding())
