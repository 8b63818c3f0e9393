"""Tests of DICOM files: modality LUT, windows, photometric interpretations, frames, compression and damage."""

import io

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from udc_model.data.decode import decode, decode_frames  # noqa: E402
from udc_model.data.formats import BadImageError  # noqa: E402
from udc_model.data.transforms import Decoding  # noqa: E402

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"


def dicom_bytes(pixels, photometric="MONOCHROME2", bits=None, syntax=EXPLICIT, **elements):
    """A DICOM file of (H, W), (H, W, 3) or, with NumberOfFrames, (N, H, W) pixels."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    is_stack = "NumberOfFrames" in elements
    dataset.Rows, dataset.Columns = pixels.shape[1:3] if is_stack else pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 and not is_stack else 1
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


HU = np.array([[-1024, -160, 40, 240], [1000, 39, 41, -159]], dtype=np.int16)


def _grey(content, **decoding):
    return np.asarray(decode(content, Decoding(1, **decoding)))


def test_window_after_rescaling():
    """Window 40/400 (DICOM PS3.3 C.11.2.1.2.1): x <= -160 is black, x > 239 is white, linear between."""
    stored = (HU + 1024).astype(np.uint16)
    content = dicom_bytes(stored, bits=12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    expected = np.clip((HU - 39.5) / 399 + 0.5, 0, 1) * 255
    assert _grey(content).tolist() == np.rint(expected).astype(int).tolist()
    assert _grey(content)[0].tolist() == [0, 0, 128, 255]


def test_window_functions():
    values = np.array([[0, 50, 100, 200]], np.uint16)
    exact = dicom_bytes(values, WindowCenter=100, WindowWidth=200, VOILUTFunction="LINEAR_EXACT")
    assert _grey(exact).tolist() == [[0, 64, 128, 255]]
    sigmoid = dicom_bytes(values, WindowCenter=100, WindowWidth=200, VOILUTFunction="SIGMOID")
    assert _grey(sigmoid).tolist() == [[round(255 / (1 + np.exp(-4 * (v - 100) / 200))) for v in (0, 50, 100, 200)]]
    several = dicom_bytes(values, WindowCenter=[100, 7], WindowWidth=[200, 9], VOILUTFunction="LINEAR_EXACT")
    assert _grey(several).tolist() == [[0, 64, 128, 255]]  # the first window
    step = dicom_bytes(values, WindowCenter=100, WindowWidth=1)
    assert _grey(step).tolist() == [[0, 0, 255, 255]]


def test_monochrome1_is_inverted():
    eight = np.array([[0, 1, 255]], np.uint8)
    assert _grey(dicom_bytes(eight, "MONOCHROME1")).tolist() == [[255, 254, 0]]
    deep = dicom_bytes(np.array([[0, 4095]], np.uint16), "MONOCHROME1", bits=12)
    assert _grey(deep, intensity=(0, 4095)).tolist() == [[255, 0]]
    window = dicom_bytes(np.array([[0, 100, 200]], np.uint16), "MONOCHROME1", WindowCenter=100.5,
                         WindowWidth=201)  # fmt: skip
    assert _grey(window).tolist() == [[255, 127, 0]]


def test_without_a_window_grey_values_are_deep():
    frame = next(decode_frames(dicom_bytes(HU, RescaleSlope=2, RescaleIntercept=10), Decoding()))
    assert frame.deep.tolist() == (HU.astype(int) * 2 + 10).tolist()
    fractional = next(decode_frames(dicom_bytes(HU, RescaleSlope=0.5, RescaleIntercept=0), Decoding()))
    assert fractional.deep.tolist() == (HU / 2).tolist()
    assert _grey(dicom_bytes(HU), intensity=(-1024, 1000)).tolist()[0] == [0, 109, 134, 159]


def test_intensity_replaces_the_window():
    content = dicom_bytes(HU, WindowCenter=40, WindowWidth=400)
    assert _grey(content, intensity=(-1024, 1000), dicom_windows=False).tolist()[0] == [0, 109, 134, 159]


def test_voi_lut():
    lut = pydicom.Dataset()
    lut.LUTDescriptor, lut.LUTData = [4, 0, 8], [255, 10, 20, 0]
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    content = dicom_bytes(np.array([[0, 1, 2, 3]], np.uint16), VOILUTSequence=pydicom.Sequence([lut]))
    assert _grey(content).tolist() == [[255, 10, 20, 0]]


def test_colours():
    pixels = np.array([[[200, 100, 50], [1, 2, 3]]], np.uint8)
    assert np.asarray(decode(dicom_bytes(pixels, "RGB"), Decoding())).tolist() == pixels.tolist()
    ybr = np.array([[[76, 85, 255], [128, 128, 128]]], np.uint8)  # red and grey
    decoded = np.asarray(decode(dicom_bytes(ybr, "YBR_FULL"), Decoding()))
    np.testing.assert_allclose(decoded, [[[254, 0, 0], [128, 128, 128]]], atol=2)
    deep = np.array([[[65535, 32768, 0]]], np.uint16)
    assert np.asarray(decode(dicom_bytes(deep, "RGB"), Decoding())).tolist() == [[[255, 128, 0]]]


def test_frames():
    stack = np.stack([np.full((3, 5), value, np.uint8) for value in (10, 20, 30)])
    content = dicom_bytes(stack, NumberOfFrames=3)
    with pytest.raises(BadImageError, match=r"3 frames; .* data\.frames"):
        decode(content, Decoding())
    assert _grey(content, frames="first")[0, 0] == 10
    frames = list(decode_frames(content, Decoding(frames="each")))
    assert [np.asarray(frame.image)[0, 0] for frame in frames] == [10, 20, 30]
    assert {frame.total for frame in frames} == {3}


def test_window_of_a_functional_group():
    def groups(center):
        window, group = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, 200, "LINEAR_EXACT"
        group.FrameVOILUTSequence = pydicom.Sequence([window])
        return group

    stack = np.full((2, 1, 2), 100, np.uint16)
    content = dicom_bytes(stack, NumberOfFrames=2,
                          PerFrameFunctionalGroupsSequence=pydicom.Sequence([groups(100), groups(50)]))  # fmt: skip
    frames = decode_frames(content, Decoding(frames="each"))
    assert [np.asarray(frame.image)[0, 0] for frame in frames] == [128, 191]


def test_size_is_checked_before_pixels_are_decoded():
    content = dicom_bytes(np.zeros((2, 2), np.uint8), Rows=50_000, Columns=50_000)
    with pytest.raises(BadImageError, match=r"50000 x 50000 pixels .* data\.max_pixels"):
        decode(content, Decoding())


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"syntax": DEFLATED}, "deflated"),
        ({"photometric": "CMYK"}, "photometric interpretation"),
        ({"Rows": 200}, "damaged"),
        ({"WindowCenter": 10, "WindowWidth": -5}, "window"),
    ],
)
def test_unsupported_and_damaged_files_are_refused(elements, reason):
    content = dicom_bytes(np.zeros((4, 4), np.uint8), **elements)
    with pytest.raises(BadImageError, match=reason):
        decode(content, Decoding())


def test_number_of_frames_is_bounded():
    content = dicom_bytes(np.zeros((10_001, 1, 1), np.uint8), NumberOfFrames=10_001)
    with pytest.raises(BadImageError, match="more than 10,000 frames"):
        next(decode_frames(content, Decoding(frames="each")))


def test_unsupported_compression_comes_with_advice():
    from pathlib import Path

    path = Path(pydicom.data.__file__).parent / "test_files" / "JPEGLSNearLossless_08.dcm"
    with pytest.raises(BadImageError, match=r"decompress it \(dcmdjpeg"):
        decode(path, Decoding())


def test_files_of_other_programs():
    """pydicom's own test files: windows of a magnetic resonance image, palette, run lengths, JPEG 2000, big-endian."""
    from pathlib import Path

    folder = Path(pydicom.data.__file__).parent / "test_files"
    images = [
        _grey((folder / f"MR_small{kind}.dcm").read_bytes()) for kind in ("", "_RLE", "_bigendian", "_jp2klossless")
    ]
    pixels = pydicom.dcmread(folder / "MR_small.dcm").pixel_array
    expected = np.rint(np.clip((pixels - 599.5) / 1599 + 0.5, 0, 1) * 255)
    for image in images:
        assert (image == expected).all()
    palette = np.asarray(decode(folder / "examples_palette.dcm", Decoding()))
    dataset = pydicom.dcmread(folder / "examples_palette.dcm")
    reference = pydicom.pixels.processing.apply_color_lut(dataset.pixel_array, dataset)
    assert (palette == reference >> (8 if reference.dtype == np.uint16 else 0)).all()
