"""Inputs of udc predict: files, folders, standard input, lists; one line for each that cannot be used."""

import io
import os
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from udc_model.errors import UdcError
from udc_model.inference import inputs
from udc_model.inference.inputs import BadInput, ImageInput, list_inputs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with images a.png, b/c.JPG, b/d.png and other files."""
    monkeypatch.chdir(tmp_path)
    Path("b/.hidden").mkdir(parents=True)
    for name in ("a.png", "b/c.JPG", "b/d.png", "b/.hidden/e.png", "b/._d.png"):
        Image.new("RGB", (8, 8), "red").save(name, format="PNG")
    Path("b/notes.txt").write_text("no image")
    return tmp_path


def _stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def _names(*arguments):
    return [each.name for each in list_inputs(*arguments)]


def test_files_and_folders_by_path_once(folder):
    assert _names(["a.png", "b", "b/d.png", "a.png"]) == ["a.png", "b/c.JPG", "b/d.png"]
    assert _names(["."]) == ["a.png", "b/c.JPG", "b/d.png"]
    assert _names(["./b//d.png", "b/d.png"]) == ["b/d.png"]
    assert _names(["b/notes.txt"]) == ["b/notes.txt"]  # decoding gives the reason
    assert all(isinstance(each, ImageInput) for each in list_inputs(["b", "a.png"]))


def test_folders_are_listed_in_the_order_of_paths(folder):
    for name in ("b/x/1.png", "b/x.png", "b/x-1.png", "b/e/1.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert _names(["b"]) == [p for p in sorted(map(str, Path("b").rglob("*.*"))) if p.lower().endswith((".png", ".jpg"))
                             and "/." not in p]  # fmt: skip


def test_standard_input_is_an_image(folder, monkeypatch):
    data = Path("a.png").read_bytes()
    _stdin(monkeypatch, data)
    assert list(list_inputs(["-"])) == [ImageInput("-", data)]
    _stdin(monkeypatch, data)
    assert _names(["b", "-"]) == ["b/c.JPG", "b/d.png", "-"]
    monkeypatch.setattr(inputs, "_MAX_BYTES", 10)
    _stdin(monkeypatch, data)
    (bad,) = list_inputs(["-"])
    assert isinstance(bad, BadInput)
    assert bad.reason.startswith("has more than")


def test_a_pipe_is_read_as_an_image(folder):
    data = Path("a.png").read_bytes()
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(data))
    writer.start()
    assert list(list_inputs(["pipe"])) == [ImageInput("pipe", data)]
    writer.join()
    (bad,) = list_inputs(["/dev/null"])
    assert bad == ImageInput("/dev/null", b"")  # decoding gives the reason
    assert "has more than" in str(next(list_inputs(["/dev/zero"])))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"a.png\nb/d.png\n", ["a.png", "b/d.png"]),
        (b"a.png\r\nb/d.png", ["a.png", "b/d.png"]),
        (b"\n\na.png\n\n", ["a.png"]),
        (b"a.png\0b/d.png\0", ["a.png", "b/d.png"]),
        (b"a.png\0b/d.png\n", ["a.png", "b/d.png"]),
        (b"a.png\na.png\n", ["a.png", "a.png"]),
        (b"b\n-\n", ["b/c.JPG", "b/d.png", "-"]),  # standard input is the list
        (b"", []),
    ],
)
def test_lists_of_paths(folder, monkeypatch, text, names):
    Path("list").write_bytes(text)
    assert _names([], "list") == names
    _stdin(monkeypatch, text)
    assert _names([], "-") == names


def test_null_characters_separate_names_with_line_breaks(folder):
    Path("x\ny.png").touch()
    Path("list").write_bytes(b"x\ny.png\0a.png\0")
    assert _names([], "list") == ["x\ny.png", "a.png"]


def test_a_long_list_is_read_line_by_line(folder):
    with Path("list").open("w") as out:
        out.writelines("a.png\n" for _ in range(100_000))
    listed = list_inputs([], "list")
    assert next(listed).name == "a.png"
    assert sum(1 for _ in listed) == 99_999
    Path("list").write_bytes(b"x" * 100_000)
    with pytest.raises(UdcError, match=r"^--from-list list: path 1 has more than 32 KiB$"):
        _names([], "list")
    Path("list").write_bytes(b"a\0" + b"x" * 100_000)
    with pytest.raises(UdcError, match=r"^--from-list list: path 2 has more than 32 KiB$"):
        _names([], "list")


@pytest.mark.parametrize(("paths", "list_file", "message"), [
    ([], None, "^nothing to decide: name images or folders"),
    (["-", "-"], None, r"^- \(standard input\) is given twice$"),
    (["-"], "-", r"^- \(standard input\) is given twice$"),
    ([], "missing.txt", "^--from-list missing.txt: cannot be read: No such file or directory$"),
    ([], ".", r"^--from-list \.: cannot be read: Is a directory$"),
])  # fmt: skip
def test_arguments_are_checked_before_the_model_is_loaded(folder, paths, list_file, message):
    with pytest.raises(UdcError, match=message):
        list_inputs(paths, list_file)


def test_inputs_that_are_no_images_are_one_line_each(folder):
    with zipfile.ZipFile("images.zip", "w") as archive:
        archive.write("a.png")
    Path("images.zip").rename("images.dat")
    with tarfile.open("images.tar.gz", "w:gz") as archive:
        archive.add("a.png")
    Path("images.rar").write_bytes(b"Rar!")
    Path("empty").mkdir()
    Path("loop").symlink_to(".")
    Path("self").symlink_to("self")
    Path("b/up").symlink_to("..")
    Path("b/gone.png").symlink_to("nowhere.png")
    reasons = {
        "https://example.org/a.png": "is a URL; download it first (curl -LO URL), then predict the file",
        "s3://bucket/a.png": "is a URL;",
        "images.dat": "is a zip archive; unpack it first (unzip images.dat -d FOLDER), then predict the folder",
        "images.tar.gz": "is a tar archive; unpack it first (tar -xf images.tar.gz -C FOLDER)",
        "images.rar": "is a compressed file; unpack it first",
        "empty": "no images in this folder",
        "missing.png": "cannot be opened: No such file or directory",
        "self": "cannot be opened: Too many levels of symbolic links",
        "a\0b": "cannot be opened: embedded null byte",
        "x" * 5000: "cannot be opened: File name too long",
    }
    for name, reason in reasons.items():
        (bad,) = list_inputs([name])
        assert isinstance(bad, BadInput)
        assert bad.name == name
        assert bad.reason.startswith(reason)
    found = list(list_inputs(["loop"]))  # named itself, it is followed
    assert [each.name for each in found if isinstance(each, ImageInput)] == [
        "loop/a.png", "loop/b/c.JPG", "loop/b/d.png"
    ]  # fmt: skip
    assert {each.name for each in found if isinstance(each, BadInput)} == {
        "loop/b/gone.png", "loop/b/up", "loop/loop"
    }  # fmt: skip
    assert str(BadInput("a\n\x1b[31m", "is")) == r"a\n\x1b[31m: is"


def test_a_folder_that_cannot_be_read_is_one_line(folder, monkeypatch):
    original = os.scandir

    def scandir(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [str(each) for each in list_inputs(["."]) if isinstance(each, BadInput)] == [
        "b: the folder cannot be read: Permission denied"
    ]
