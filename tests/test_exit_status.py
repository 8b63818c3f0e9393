"""Targets of expensive work are checked before it starts."""

from pathlib import Path

import pytest

from udc_model.cli import main
from udc_model.errors import UdcError
from udc_model.files import check_target


@pytest.mark.parametrize(("target", "message"), [
    (".", r"^\.: is a folder; name a file, as model\.onnx$"),
    ("folder", r"^folder: is a folder; name a file, as folder/model\.onnx$"),
    ("folder.onnx", r"^folder\.onnx: is a folder; name a file, as folder\.onnx/model\.onnx$"),
    ("model", r"^model: the name of the file must end in \.onnx, as model\.onnx$"),
    ("model.pt", r"^model\.pt: the name of the file must end in \.onnx, as model\.onnx$"),
    ("missing/model.onnx", r"^missing/model\.onnx: the folder missing does not exist; create it first$"),
    ("file/model.onnx", r"^file/model\.onnx: the folder file is a file, not a folder$"),
    ("/proc/model.onnx", r"^/proc/model\.onnx: cannot be written: "),
])  # fmt: skip
def test_targets_that_cannot_be_written(tmp_path, monkeypatch, target, message, caplog):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.onnx"):
        Path(folder).mkdir()
    Path("file").touch()
    with pytest.raises(UdcError, match=message):
        check_target(Path(target), ".onnx")
    assert main(["export", target]) == 1  # without a model: the target is checked first
    assert caplog.text.count("\n") == 1
    assert target in caplog.text


def test_targets_that_can_be_written(tmp_path):
    (tmp_path / "old.onnx").write_text("old")
    for name in ("old.onnx", "new.onnx", "NEW.ONNX"):
        check_target(tmp_path / name, ".onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_text() == "old"
