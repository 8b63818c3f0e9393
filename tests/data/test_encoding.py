"""Encoded images have the pixels of prepared ones, and nothing else of their files."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from udc_model.data.decode import decode
from udc_model.data.encoding import decode_prepared, encode, max_bytes, max_pixels
from udc_model.data.jpeg_segments import without_metadata
from udc_model.data.transforms import Decoding, Preprocessing


def _jpeg(size=(20, 16), mode="RGB", orientation=1, tail=b"", **options) -> bytes:
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "SECRET camera"
    buffer = io.BytesIO()
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size)
    coarse.convert(mode).save(buffer, "JPEG", exif=exif, comment=b"SECRET comment", **options)
    return buffer.getvalue() + tail


@pytest.mark.parametrize(("jpeg", "is_jpeg"), [
    (_jpeg(), True),
    (_jpeg(mode="L", progressive=True), True),
    (_jpeg(mode="CMYK"), True),
    (_jpeg(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()), True),
    (_jpeg(orientation=6), False),
    (_jpeg(tail=b"SECRET" + _jpeg()), False),
    (_jpeg(tail=b"SECRET"), False),
    (_jpeg((40, 32)), False),
    (_jpeg((7, 8)), True),
    (_jpeg((200, 16)), False),
])  # fmt: skip
@pytest.mark.parametrize("preprocessing", [
    Preprocessing(16),
    Preprocessing(16, "squash", decoding=Decoding(1)),
    Preprocessing(16, crop_pct=0.875),
], ids=["crop", "grey", "share"])  # fmt: skip
def test_pixels_stay_and_metadata_go(jpeg, is_jpeg, preprocessing):
    image = decode(jpeg, preprocessing.decoding)
    encoded, was_kept = encode(image, preprocessing.to_stored(image), preprocessing, jpeg)
    assert (decode_prepared(encoded, preprocessing) == preprocessing.to_stored(image)).all()
    assert b"SECRET" not in encoded
    assert len(encoded) <= max_bytes(preprocessing)
    decoded = Image.open(io.BytesIO(encoded))
    assert decoded.width * decoded.height <= max_pixels(preprocessing)
    assert was_kept == is_jpeg or preprocessing.resize == "squash" or preprocessing.crop_pct < 1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (500, 3), (16, 16), (17, 16), (64, 64), (1000, 400)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_without_a_jpeg_are_encoded_without_loss(size, mode):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    preprocessing = Preprocessing(16, decoding=Decoding(3 if mode == "RGB" else 1))
    encoded, is_jpeg = encode(image, preprocessing.to_stored(image), preprocessing, None)
    assert not is_jpeg
    assert (decode_prepared(encoded, preprocessing) == preprocessing.to_stored(image)).all()


@pytest.mark.parametrize("end", range(0, 400, 7))
def test_incomplete_jpegs_are_not_kept(end):
    assert without_metadata(_jpeg()[:end]) is None
