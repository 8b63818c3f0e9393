"""Files that people have beside their images: left out with a count, or one line that names the file."""

import os
import socket

import pytest

from udc_model.data.sources.listing import list_folder
from udc_model.errors import UdcError


@pytest.fixture
def root(tmp_path, write_images):
    folder = tmp_path / "set"
    write_images(folder, *(f"{name}/{k:02d}.png" for name in ("ant", "bee") for k in range(12)))
    return folder


def test_system_files_are_left_out_and_counted(root, inspected, prepared):
    for name in ("ant/._00.png", "ant/.DS_Store", "bee/Thumbs.db", "bee/desktop.ini", "__MACOSX/ant/._00.png",
                 ".ipynb_checkpoints/a.png", ".git/config"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0\5\x16\7AppleDouble")
    status, text = inspected(root)
    assert status == 0
    assert "24 images of 2 classes: ant 12, bee 12" in text
    assert "left out: 7 × hidden or system file (.git, .ipynb_checkpoints, __MACOSX, …)" in text
    assert prepared(root).info["left_out"] == {"hidden or system file": 7}


def test_the_contents_decide_if_the_suffix_does_not(root, write_images, prepared):
    write_images(root, "ant/scan", "ant/photo.data", "bee/IMG.PNG", "bee/wrong.jpg")
    (root / "bee" / "notes.txt").write_text("text")
    (root / "bee" / "empty.dat").write_bytes(b"")
    dataset = prepared(root)
    assert {"ant/scan", "ant/photo.data", "bee/IMG.PNG", "bee/wrong.jpg"} <= set(dataset.manifest["path"])
    assert dataset.info["left_out"] == {"not an image": 2}
    assert (dataset.folder / "left_out.csv").read_text() == (
        "path,reason\nbee/empty.dat,not an image\nbee/notes.txt,not an image\n"
    )


def test_links_sockets_and_pipes(root, inspected, prepared, monkeypatch):
    (root / "ant" / "readme").symlink_to(root / "nowhere")
    os.mkfifo(root / "ant" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(root / "ant")  # an address of a socket has at most 108 bytes
        server.bind("s.png")
        status, text = inspected(root)
    assert status == 0
    assert "2 × socket, pipe or device (ant/pipe.png, ant/s.png)" in text
    assert "1 × link to a file that does not exist (ant/readme)" in text
    (root / "bee" / "lost.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UdcError, match=r"bee/lost\.png: is a link to a file that does not exist"):
        prepared(root)
    assert prepared(root, on_bad_image="skip").info["rejected"] == 1


def test_linked_folders_are_followed_and_circles_are_an_error(root, tmp_path, write_images, inspected, prepared):
    write_images(tmp_path / "elsewhere", *(f"{k}.png" for k in range(12)))
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    assert "ant 12, bee 12, cat 12" in inspected(root)[1]
    (root / "ant" / "loop").symlink_to(root)
    assert "cannot be used: ant/loop: is a link to a folder that contains it; remove the link" in inspected(root)[1]
    with pytest.raises(UdcError, match="ant/loop: is a link to a folder that contains it"):
        prepared(root)


def test_folders_that_may_not_be_read_are_an_error(root, prepared, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if getattr(folder, "name", "") == "bee":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    with pytest.raises(UdcError, match=r"no images in the class folder bee(.|\n)* bee: the folder cannot be read"):
        prepared(root)


@pytest.mark.parametrize(
    "name", ["-rf.png", " a .png", "line\nbreak.png", "line\rbreak.png", "tab\t.png", "ä" * 120 + ".png",
             "x" * 251 + ".png", "a,b;c.png", '"q".png', "A.png", "%s {} $HOME.png", "ab\u202ecd.png"]
)  # fmt: skip
def test_odd_names_work(root, name, write_images, prepared):
    write_images(root, f"ant/{name}", "ant/a.png")
    dataset = prepared(root)
    assert f"ant/{name}" in set(dataset.manifest["path"])
    assert sum(len(dataset.split(split)) for split in ("train", "validation", "calibration", "test")) == 26


def test_a_name_that_is_not_utf8_is_named_in_one_line(root, prepared):
    content = (root / "ant" / "00.png").read_bytes()
    with open(os.fsencode(root / "ant") + b"/caf\xe9.png", "wb") as handle:  # noqa: PTH123
        handle.write(content)
    with pytest.raises(UdcError, match=r"ant/caf\\udce9\.png: its name is not UTF-8; rename it"):
        prepared(root)
    dataset = prepared(root, on_bad_image="skip")
    assert dataset.info["rejected"] == 1
    assert r"ant/caf\udce9.png" in (dataset.folder / "left_out.csv").read_text()


def test_class_folders_in_both_unicode_forms_are_one_class(root, write_images, inspected):
    write_images(root, *(f"{form}/{k}.png" for form in ("cafe\u0301", "caf\u00e9") for k in range(3)))
    text = inspected(root)[1]
    assert "caf\u00e9 6" in text
    assert "the class caf\u00e9 is written in several ways" in text


def test_files_in_formats_to_convert_are_an_error_that_says_how(root, prepared):
    (root / "ant" / "photo.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    (root / "ant" / "slide.svs").write_bytes(b"II*\0" + bytes(40))
    with pytest.raises(UdcError) as error:
        prepared(root)
    assert "ant/photo.jxl: it is in JPEG XL; convert it to PNG" in str(error.value)
    assert "ant/slide.svs: it is a whole-slide image" in str(error.value)


def test_very_deep_folders_are_an_error(tmp_path):
    folder = tmp_path / "set"
    deep = folder / "/".join(["d"] * 70)
    deep.mkdir(parents=True)
    assert [item.reason for item in list_folder(folder).rejected] == ["more than 64 folders in folders"]
