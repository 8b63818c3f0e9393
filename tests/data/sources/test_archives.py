"""Archives: the same images as the folder; path escapes, links, bombs and damage are refused."""

import io
import shutil
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from udc_model.config import DataParams
from udc_model.data.sources import archives, open_source
from udc_model.errors import UdcError


@pytest.fixture
def root(tmp_path, write_images):
    folder = tmp_path / "set"
    write_images(folder, *(f"{name}/{k:02d}.png" for name in ("ant", "bee") for k in range(12)))
    return folder


@pytest.mark.parametrize("form", ["zip", "tar", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_archives_give_the_images_of_the_folder(root, tmp_path, form, wrapped, prepared):
    folder = prepared(root)
    expected = {name: np.asarray(folder.split(name).images) for name in ("train", "test")}
    base = (root.parent, root.name) if wrapped else (root, ".")
    archive = shutil.make_archive(str(tmp_path / "data"), form, *base)
    dataset = prepared(archive)
    assert dataset.classes == ["ant", "bee"]
    assert [p.removeprefix("set/") for p in dataset.split("test").paths] == folder.split("test").paths
    assert all((np.asarray(dataset.split(name).images) == images).all() for name, images in expected.items())
    assert sorted(p.name for p in dataset.folder.iterdir()) == sorted(p.name for p in folder.folder.iterdir())


def test_a_table_in_an_archive_with_system_files_of_a_mac(root, tmp_path, prepared):
    table = "file;class\n" + "".join(f"{k:02d}.png;{'abc'[k % 2]}\n" for k in range(12))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for k in range(12):
            file.write(root / "ant" / f"{k:02d}.png", f"set/img/{k:02d}.png")
        file.writestr("set/labels.csv", table)
        file.writestr("__MACOSX/set/img/._00.png", b"x")
    dataset = prepared(tmp_path / "a.zip")
    assert dataset.classes == ["a", "b"]
    assert len(dataset.manifest) == 12


def _open(archive, folder):
    return open_source(DataParams(source="auto", path=str(archive)), folder / "unpacked")


def test_messages_name_the_archive(root, tmp_path):
    archive = tmp_path / "birds.zip"
    with zipfile.ZipFile(archive, "w"):
        pass
    with pytest.raises(UdcError, match="contains no images"):
        _open(archive, tmp_path / "first")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(root / "ant" / "00.png", "a.png")
    with pytest.raises(UdcError) as error:
        _open(archive, tmp_path)
    assert str(error.value).startswith(f"{archive}: has images but no class folders\nFound:\n  birds.zip/ 1 image(s)\n")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("labels.csv", "image,label\na.png,ant\nb.png,bee\n")
        file.writestr("notes.csv", "text\nx\n")
    source = _open(archive, tmp_path / "second")
    assert [each.reason for each in source.rejected] == [f"no such file ({archive}/labels.csv:3)"]
    assert source.notes[0].startswith(f"not used as a table of classes: {archive}/notes.csv: has no column of images")


def test_a_zip_file_whose_folders_are_separated_by_backslashes(root, tmp_path):
    _zip_of_windows(tmp_path / "a.zip", {f"set\\{name}\\0.png": root / name / "00.png" for name in ("ant", "bee")})
    source = _open(tmp_path / "a.zip", tmp_path)
    assert [record.path for record in source.records] == ["set/ant/0.png", "set/bee/0.png"]


def _zip_of_windows(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("set\\ant\\", b"")
        for name, file in files.items():
            archive.write(file, name)


def _zip(path, name, content=b"x", mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        file.writestr(info, content)


def _tar(path, name, kind=tarfile.REGTYPE, link=""):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
        file.addfile(info, io.BytesIO(b"x"))


ATTACKS = {
    "zip escape": ("a.zip", lambda p: _zip(p, "../evil.png"), "leaves the data folder"),
    "zip absolute": ("a.zip", lambda p: _zip(p, "/tmp/evil.png"), "is an absolute path"),
    "zip escape by backslashes": ("a.zip", lambda p: _zip(p, "ant\\..\\..\\evil.png"), "leaves the data folder"),
    "zip root by backslashes": ("a.zip", lambda p: _zip(p, "\\tmp\\evil.png"), "is an absolute path"),
    "zip drive by backslashes": ("a.zip", lambda p: _zip(p, "C:\\evil.png"), "is an absolute path"),
    "zip drive": ("a.zip", lambda p: _zip(p, "C:/evil.png"), "is an absolute path"),
    "zip link": ("a.zip", lambda p: _zip(p, "link", b"/etc/passwd", stat.S_IFLNK | 0o777), "is a link or a device"),
    "tar escape": ("a.tar", lambda p: _tar(p, "ant/../../evil.png"), "leaves the data folder"),
    "tar link": ("a.tar", lambda p: _tar(p, "ant/l.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
    "tar hard link": ("a.tar", lambda p: _tar(p, "ant/l.png", tarfile.LNKTYPE, "/etc/passwd"), "is a link or a device"),
    "tar device": ("a.tar", lambda p: _tar(p, "ant/d.png", tarfile.CHRTYPE), "is a link or a device"),
    "bomb": ("a.zip", lambda p: _zip(p, "ant/bomb.png", bytes(2**20)), "unpack to more than"),
    "not an archive": ("a.zip", lambda p: p.write_bytes(b"x" * 100), "cannot be unpacked"),
    "cut": ("a.tar.gz", lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(20)), "cannot be unpacked"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_and_leave_nothing(tmp_path, attack, prepared, monkeypatch):
    name, write, message = ATTACKS[attack]
    write(tmp_path / name)
    monkeypatch.setattr(archives, "_MIN_BOMB", 2**16)
    with pytest.raises(UdcError, match=message) as error:
        prepared(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert not list((tmp_path / "out" / "data").iterdir())
    assert not list(tmp_path.rglob("evil.png"))


def test_a_name_that_occurs_twice_is_refused(tmp_path, prepared):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for _ in range(2):
            file.addfile(tarfile.TarInfo("ant/a.png"))
    with pytest.raises(UdcError, match=r"contains .*ant/a\.png twice"):
        prepared(tmp_path / "a.tar")


def test_a_zip_that_lies_about_its_size_is_stopped_while_it_is_read(tmp_path, prepared, monkeypatch):
    _zip(tmp_path / "a.zip", "ant/bomb.png", bytes(2**20))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    position = content.find(b"PK\x01\x02")
    content[position + 24 : position + 28] = (2**16).to_bytes(4, "little")  # the size in the directory
    (tmp_path / "a.zip").write_bytes(content)
    monkeypatch.setattr(archives, "_MIN_BOMB", 2**17)
    with pytest.raises(UdcError, match=r"a\.zip: (cannot be unpacked|.* unpack to more than)"):
        prepared(tmp_path / "a.zip")
