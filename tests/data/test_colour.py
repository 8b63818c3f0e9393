"""Tests of colour profiles: Adobe RGB, Display P3, grey, CMYK and LAB become sRGB; sRGB changes no pixel."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from udc_model.data import colour
from udc_model.data.decode import decode
from udc_model.data.transforms import Decoding

# XYZ of the primaries under D50 (Adobe RGB 1998 specification; SMPTE RP 431-2 with Bradford adaptation).
ADOBE = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
DISPLAY_P3 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
SRGB = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)])
COLOURS = np.array([[[200, 100, 50], [60, 180, 90], [128, 128, 128], [20, 40, 200], [250, 240, 230]]], dtype=np.uint8)


def _srgb_encoded(linear):
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def _expected(colours, primaries, gamma):
    xyz = (colours / 255) ** gamma @ np.array(primaries)
    return _srgb_encoded(xyz @ np.linalg.inv(SRGB))


def _png(image, profile):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=profile)
    return buffer.getvalue()


@pytest.mark.parametrize(("primaries", "gamma"), [(ADOBE, 2.19921875), (DISPLAY_P3, 2.2)])
def test_wide_gamut_photographs_become_srgb(primaries, gamma, profiles):
    decoded = np.asarray(decode(_png(Image.fromarray(COLOURS), profiles.rgb(primaries, gamma)), Decoding()))
    expected = _expected(COLOURS, primaries, gamma)
    assert np.abs(expected - COLOURS).max() > 10  # the profile matters
    np.testing.assert_allclose(decoded, expected, atol=1.5)


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "WEBP", "AVIF"])
def test_profile_is_applied_in_every_format(form, profiles):
    image, buffer = Image.new("RGB", (16, 16), (200, 100, 50)), io.BytesIO()
    options = {
        "TIFF": {},
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100},
    }
    image.save(buffer, form, icc_profile=profiles.rgb(ADOBE, 2.2), **options[form])
    decoded = np.asarray(decode(buffer.getvalue(), Decoding()))[8, 8]
    np.testing.assert_allclose(decoded, _expected(np.array([200, 100, 50]), ADOBE, 2.2), atol=4)


def test_srgb_profile_changes_no_pixel(rng):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    assert (np.asarray(decode(_png(Image.fromarray(pixels), profile), Decoding())) == pixels).all()
    assert colour._transform(profile, "RGB") is None  # so a photograph is not converted at all


def test_profile_is_read_once(profiles):
    profile = profiles.rgb(ADOBE, 2.1)
    content = _png(Image.fromarray(COLOURS), profile)
    misses = colour._transform.cache_info().misses
    for _ in range(3):
        decode(content, Decoding())
    assert colour._transform.cache_info().misses == misses + 1


def test_transparent_pixels_are_converted_before_they_are_composited(profiles):
    rgba = Image.fromarray(np.dstack([COLOURS, np.array([[255, 255, 0, 128, 255]], np.uint8)]))
    decoded = np.asarray(decode(_png(rgba, profiles.rgb(ADOBE, 2.2)), Decoding()))[0]
    expected = _expected(COLOURS, ADOBE, 2.2)[0]
    np.testing.assert_allclose(decoded[[0, 1, 4]], expected[[0, 1, 4]], atol=1.5)
    assert decoded[2].tolist() == [255, 255, 255]
    np.testing.assert_allclose(decoded[3], expected[3] * 128 / 255 + 127, atol=2)


def test_grey_profile(profiles):
    grey = Image.fromarray(np.array([[0, 50, 128, 255]], np.uint8))
    for channels in (1, 3):
        decoded = np.asarray(decode(_png(grey, profiles.grey(1.0)), Decoding(channels))).reshape(4, channels)
        np.testing.assert_allclose(decoded[:, 0], _srgb_encoded(np.array([0, 50, 128, 255]) / 255), atol=1.5)


def test_profile_of_another_mode_is_ignored(profiles):
    """Programs that convert a photograph to grey often leave its RGB profile in the file."""
    grey = Image.fromarray(np.array([[0, 50, 128, 255]], np.uint8))
    assert np.asarray(decode(_png(grey, profiles.rgb(ADOBE, 2.2)), Decoding(1))).tolist() == [[0, 50, 128, 255]]


@pytest.mark.parametrize("profile", [b"not a profile", b"\0" * 200, bytes(9 * 2**20)])
def test_damaged_profile_is_ignored(profile):
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "TIFF", icc_profile=profile)
    assert (np.asarray(decode(buffer.getvalue(), Decoding())) == COLOURS).all()


def test_truncated_profile_is_ignored(profiles):
    content = _png(Image.fromarray(COLOURS), profiles.rgb(ADOBE, 2.2)[:200])
    assert (np.asarray(decode(content, Decoding())) == COLOURS).all()


def test_cmyk_with_a_profile(profiles):
    """A paper whose white is L = 80: without the profile it would be pure white."""

    def lab(c, m, y, k):
        return (0, 128, 128) if k else (round((100 - 50 * c) * 2.55), 128 - 40 * c, 128 - 30 * c)

    buffer = io.BytesIO()
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image.save(buffer, "TIFF", icc_profile=profiles.cmyk(lab))
    decoded = np.asarray(decode(buffer.getvalue(), Decoding()))[8, 8]
    assert np.asarray(image.convert("RGB"))[8, 8].tolist() == [0, 255, 255]
    np.testing.assert_allclose(decoded, _srgb_of_lab(50, -40, -30), atol=6)  # the table has 8 bits


def _srgb_of_lab(lightness, a, b):
    y = (lightness + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    return _srgb_encoded(xyz @ np.linalg.inv(SRGB))


def test_lab_and_ycbcr_tiff(tiff):
    lab = tiff(np.array([[[128, 20, 236], [255, 0, 0], [0, 0, 0]]], np.uint8), photometric=8)  # b = -20, signed
    decoded = np.asarray(decode(lab, Decoding()))[0]
    np.testing.assert_allclose(decoded[0], _srgb_of_lab(128 / 2.55, 20, -20), atol=3)
    assert decoded[1].min() >= 253
    assert decoded[2].max() <= 2
    ycbcr = tiff(np.array([[[128, 128, 128], [76, 85, 255]]], np.uint8), photometric=6, tags=[(530, 3, [1, 1])])
    decoded = np.asarray(decode(ycbcr, Decoding()))[0].astype(int)
    assert decoded[0].tolist() == [128, 128, 128]
    np.testing.assert_allclose(decoded[1], [254, 0, 0], atol=2)
