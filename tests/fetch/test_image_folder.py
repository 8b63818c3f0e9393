"""The folder that fetched images are written to."""

import errno
from pathlib import Path

import pytest

from udc_model.errors import UdcError
from udc_model.fetch.image_folder import ImageFolderWriter


def test_a_full_disk_is_an_error_of_the_written_file(tmp_path, monkeypatch):
    def fail(path, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UdcError, match=r"a\.png: cannot be written: No space left on device"):
        ImageFolderWriter(tmp_path).add("train", "cat", "a.png", b"")
