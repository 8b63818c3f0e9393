"""What udc inspect says about the headers of images that Pillow alone does not read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udc_model.config import DataParams
from udc_model.data.inspection import inspect


def _headers(root):
    return inspect(DataParams(source="auto", path=str(root))).headers


@pytest.fixture
def root(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_headers_of_heic_photographs(root, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # as in a process that has decoded none
    for name in ("ant", "bee"):
        pillow_heif.from_pillow(Image.fromarray(np.zeros((48, 64, 3), np.uint8))).save(root / name / "1.heic")
    headers = _headers(root)
    assert dict(headers.kinds) == {("HEIF", "RGB"): 2}
    assert headers.sizes == [(64, 48)] * 2


def test_headers_of_grey_and_coloured_dicom_files(root):
    pydicom = pytest.importorskip("pydicom")
    folder = Path(pydicom.data.__file__).parent / "test_files"
    for name in ("ant", "bee"):
        shutil.copy(folder / "MR_small.dcm", root / name / "1.dcm")
    assert inspect(DataParams(source="auto", path=str(root))).is_grey
    shutil.copy(folder / "examples_palette.dcm", root / "bee" / "2.dcm")
    headers = _headers(root)
    assert dict(headers.kinds) == {("DICOM", "I;16"): 2, ("DICOM", "RGB"): 1}
    assert headers.sizes[0] == (64, 64)


def test_damaged_headers_are_counted(root):
    for name in ("ant", "bee"):
        (root / name / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
        (root / name / "1.dcm").write_bytes(bytes(128) + b"DICM" + bytes(20))
    assert dict(_headers(root).kinds) == {None: 4}
