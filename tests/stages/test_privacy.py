"""Tests that metadata of images (position, serial numbers, patients) never reach an output, a log or a message."""

import io
import logging
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from udc_model.cli import main
from udc_model.config import DataParams, Params
from udc_model.data.decode import decode
from udc_model.data.formats import BadImageError
from udc_model.data.transforms import Decoding
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare

SECRETS = ("PLANTED-SERIAL", "PLANTED-OWNER", "PLANTED^PATIENT", "PLANTED-XMP", "PLANTED-COMMENT", "PLANTED-ID")
GPS = (48.0, 12.0, 34.56789)


def _photograph(form, rng):
    exif = Image.Exif()
    exif[0xA431], exif[0xA430], exif[0x010E] = SECRETS[0], SECRETS[1], SECRETS[4]  # serial number, owner, description
    exif.get_ifd(0x8825).update({1: "N", 2: GPS, 29: "2026:01:01"})
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf>PLANTED-XMP</rdf></x:xmpmeta>'
    options = {"exif": exif}
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        info.add_text("Comment", SECRETS[4], zip=True)
        options["pnginfo"] = info
    elif form in ("JPEG", "WEBP", "AVIF"):
        options["xmp"] = xmp
    elif form == "GIF":
        options = {"comment": SECRETS[4].encode()}
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _dicom(rng):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.PatientName, dataset.PatientID, dataset.DeviceSerialNumber = SECRETS[2], SECRETS[5], SECRETS[0]
    dataset.add_new((0x0010, 0x0030), "DA", "20260101")
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


FORMS = {"jpg": "JPEG", "png": "PNG", "tif": "TIFF", "webp": "WEBP", "avif": "AVIF", "gif": "GIF"}


@pytest.fixture
def photographs(tmp_path, rng):
    """A folder source of all formats with planted metadata, each also with its second half missing."""
    planted = set()
    for label in ("a", "b"):
        folder = tmp_path / "raw" / label
        folder.mkdir(parents=True)
        for suffix, form in FORMS.items():
            for k in range(2):
                content = _photograph(form, rng)
                planted |= {secret for secret in SECRETS if secret.encode() in content}
                (folder / f"{k}.{suffix}").write_bytes(content)
                (folder / f"{k}-cut.{suffix}").write_bytes(content[: len(content) * (3 + k) // 5])
        content = _dicom(rng)
        planted |= {secret for secret in SECRETS if secret.encode() in content}
        (folder / "0.dcm").write_bytes(content)
        (folder / "0-cut.dcm").write_bytes(content[:-100])
        broken = content.replace(b"20260101", b"PLANTED!").replace(
            b"DA\x08\0", b"DS\x08\0"
        )  # a value of the wrong kind
        (folder / "1.dcm").write_bytes(broken)
    assert planted == set(SECRETS)
    return tmp_path / "raw"


def _leaks(content):
    position = [struct.pack("<d", GPS[2]), str(GPS[2]).encode()]
    return [text for text in [*(s.encode() for s in SECRETS), b"PLANTED", *position] if text in content]


def test_prepare_and_predict_copy_no_metadata(tmp_path, photographs, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    data = {"source": "folder", "path": str(photographs), "image_size": 16}
    with pytest.raises(UdcError) as error:
        prepare(Params(data=DataParams(**data)), Workspace(tmp_path / "strict"))
    message = str(error.value)
    assert "-cut." in message
    prepare(Params(data=DataParams(**data, on_bad_image="skip")), Workspace(tmp_path / "out"))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 7
    contents = {path.name: path.read_bytes() for path in files}
    main(["predict", "--root", str(_model(tmp_path)), "--json", str(photographs)])
    streams = capfd.readouterr()
    contents |= {"message": message.encode(), "log": caplog.text.encode(), "out": streams.out.encode(),
                 "err": streams.err.encode()}  # fmt: skip
    assert {name: _leaks(content) for name, content in contents.items() if _leaks(content)} == {}


def _model(tmp_path):
    from udc_model.config import ModelParams, ResNetParams
    from udc_model.data.transforms import Preprocessing
    from udc_model.decisions.policy import Policy
    from udc_model.models import build_model

    workspace = Workspace(tmp_path / "model")
    workspace.model.mkdir(parents=True)
    workspace.evaluation.mkdir()
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    build_model(ModelParams(resnet=resnet), ["a", "b"], 0).save_pretrained(workspace.model)
    Preprocessing(16).save(workspace.model)
    (workspace.evaluation / "policy.json").write_text(Policy(["a", "b"], [[0.0, 1.0], [1.0, 0.0]]).to_json())
    return workspace.root


def test_messages_of_damaged_files_quote_no_metadata(rng):
    """Every prefix of a file with metadata, and many damaged ones."""
    contents = [_photograph(form, rng) for form in FORMS.values()] + [_dicom(rng)]
    for content in contents:
        for cut in range(0, len(content), max(1, len(content) // 60)):
            damaged = bytearray(content[:cut] if cut % 2 else content)
            for position in rng.integers(0, len(content), 6):
                if position < len(damaged):
                    damaged[position] = rng.integers(0, 256)
            message = _message(bytes(damaged))
            assert _leaks(message.encode()) == []
            assert "\n" not in message


def _message(content):
    try:
        decode(content, Decoding(frames="first"))
    except BadImageError as error:
        return str(error)
    return ""
