"""Tests of image formats by content: every decoded format is recognised, others come with advice."""

import io

import numpy as np
import pytest
from PIL import Image

from udc_model.data.formats import HEAD_BYTES, conversion_advice, image_format


def _encoded(form, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_format_is_recognised_by_content(form):
    head = _encoded(form)[:HEAD_BYTES]
    assert image_format(head) == form
    assert conversion_advice(head, "a.jpg") is None
    assert conversion_advice(head, "wrong.txt") is None


def test_variants_are_recognised():
    assert image_format(_encoded("TIFF", big_tiff=True)[:HEAD_BYTES]) == "TIFF"
    assert image_format(_encoded("JPEG2000", no_jp2=True)[:HEAD_BYTES]) == "JPEG2000"
    assert image_format(b"P5\n# comment\n2 2 255\n1234") == "PPM"
    assert image_format(b"\0" * 128 + b"DICM" + b"\0" * 40) == "DICOM"
    assert image_format(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic") == "HEIF"
    assert image_format(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif") == "AVIF"


@pytest.mark.parametrize(
    "head", [b"", b"P", b"P5", b"BM", b"BMW is a car", b"P6rogress", b"id,label\n", b"\xff\xd8", b"GIF88a", b"PK\3\4"]
)
def test_other_files_are_no_images(head):
    assert image_format(head) is None
    assert conversion_advice(head, "a.txt") is None


@pytest.mark.parametrize(
    ("head", "name", "advice"),
    [
        (b"\xff\x0a\x00", "a.jxl", "djxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a.jpg", "JPEG XL"),
        (b"\xff\xd8\xff\xf7\0", "a.jls", "JPEG-LS"),
        (b"II*\0\x10\0\0\0CR\x02\0", "a.tif", "camera raw"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "a.cr3", "camera raw"),
        (b"II*\0\x08\0\0\0", "a.NEF", "camera raw"),
        (b"II*\0\x08\0\0\0", "a.arw", "camera raw"),
        (b"II*\0\x08\0\0\0", "a.dng", "camera raw"),
        (b"IIRO\x08\0", "a.orf", "camera raw"),
        (b"IIU\0\x18\0", "a.rw2", "camera raw"),
        (b"II*\0\x08\0\0\0", "a.svs", "OpenSlide"),
        (b"II*\0\x08\0\0\0", "a.ndpi", "OpenSlide"),
        (b"II+\0\x08\0\0\0", "a.scn", "OpenSlide"),
        (b"\xff\xd8\xff\xe0", "a.mrxs", "OpenSlide"),
        (b"8BPS\0\1", "a.psd", "layers"),
        (b"%!PS-Adobe-3.0 EPSF", "a.eps", "render it"),
        (b"%PDF-1.7", "a.pdf", "render it"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "a.svg", "render it"),
        (b"\0" * 344 + b"n+1\0", "a.nii", "NIfTI"),
        (b"\x1f\x8b\x08", "scan.nii.gz", "NIfTI"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "a.mp4", "ffmpeg"),
        (b"RIFF\0\0\0\0AVI LIST", "a.avi", "ffmpeg"),
        (b"\x1aE\xdf\xa3\x01", "a.mkv", "ffmpeg"),
    ],
)
def test_known_formats_that_are_not_decoded_come_with_advice(head, name, advice):
    sentence = conversion_advice(head, name)
    assert advice in sentence
    assert sentence.startswith("it is ")
    assert "\n" not in sentence


def test_a_jpeg_with_the_suffix_of_a_raw_file_is_a_jpeg():
    assert conversion_advice(_encoded("JPEG")[:HEAD_BYTES], "a.nef") is None
