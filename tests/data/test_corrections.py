"""Corrections of data: the file, what prepare does with it, and that splits and other images stay as they are."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from udc_model.config import DataParams, Params
from udc_model.data.applied_corrections import AppliedCorrection, read_applied
from udc_model.data.corrections import (
    EMPTY,
    Correction,
    read_corrections,
    with_correction,
    write_corrections,
)
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare


def _prepare(root, images, corrections=(), **data):
    """Prepare with corrections (keyword arguments of `Correction`); the workspace."""
    workspace = Workspace(root)
    write_corrections(workspace.corrections, [Correction(**{"sha256": ""} | each) for each in corrections])
    params = Params(data=DataParams(**{"source": "folder", "path": str(images), "image_size": 16} | data))
    prepare(params, workspace)
    return workspace


def _manifest(workspace):
    return PackedDataset.open(workspace.prepared).manifest.set_index("path")


def _path_in(manifest, split, label):
    return manifest[(manifest["split"] == split) & (manifest["label"] == label)].index[0]


@pytest.fixture
def plain(tmp_path, shapes_folder):
    """The manifest of the images without corrections."""
    return _manifest(_prepare(tmp_path / "plain", shapes_folder))


def test_relabelled_and_dropped_images_leave_the_others_in_their_splits(plain, tmp_path, shapes_folder, caplog):
    relabelled, dropped = _path_in(plain, "test", "bar"), _path_in(plain, "train", "dot")
    corrections = [{"path": relabelled, "action": "relabel", "value": "dot"}, {"path": dropped, "action": "drop"},
                   {"path": _path_in(plain, "train", "stripe"), "action": "keep"}]  # fmt: skip
    with caplog.at_level("INFO", "udc_model.stages.prepare"):
        workspace = _prepare(tmp_path / "out", shapes_folder, corrections)
    manifest = _manifest(workspace)
    assert manifest.loc[relabelled, ["label", "split"]].tolist() == ["dot", "test"]
    pd.testing.assert_frame_equal(manifest.drop(index=relabelled).drop(columns="row"),
                                  plain.drop(index=[relabelled, dropped]).drop(columns="row"))  # fmt: skip
    dataset = PackedDataset.open(workspace.prepared)
    assert dataset.info["corrections"] == {"relabel": 1, "drop": 1}
    assert dataset.info["counts"]["test"] == {"bar": 2, "dot": 4, "stripe": 3}
    assert "corrected by data/corrections.csv: 1 relabelled, 1 dropped" in caplog.messages
    assert dataset.notes[0] == "corrected by data/corrections.csv: 1 relabelled, 1 dropped"
    with (workspace.prepared / "left_out.csv").open(newline="") as handle:
        assert [dropped, "dropped by data/corrections.csv"] in list(csv.reader(handle))
    stripe = corrections[2]["path"]
    assert read_applied(workspace.prepared) == sorted(
        [
            AppliedCorrection(relabelled, "relabel", "test", "bar", "dot"),
            AppliedCorrection(dropped, "drop", "train", "dot", "dot"),
            AppliedCorrection(stripe, "keep", "train", "stripe", "stripe"),
        ],
        key=lambda each: each.path,
    )


def test_kept_images_and_reasons_change_no_byte_that_train_reads(plain, tmp_path, shapes_folder):
    path, sha256 = plain.index[0], plain["sha256"].iloc[0]
    other = plain.index[1]
    relabel = {"path": path, "sha256": sha256, "action": "relabel", "value": "dot"}
    first = _prepare(tmp_path / "first", shapes_folder, [relabel])
    more = [relabel | {"reason": "blurred", "author": "Ada", "date": "2026-01-31"}, {"path": other, "action": "keep"}]
    second = _prepare(tmp_path / "second", shapes_folder, more)
    for file in first.prepared.iterdir():
        if file.name != "corrections.csv":
            assert file.read_bytes() == (second.prepared / file.name).read_bytes(), file.name
    third = _prepare(tmp_path / "third", shapes_folder, [more[0] | {"reason": "", "author": "Bob"}, more[1]])
    for file in second.prepared.iterdir():
        assert file.read_bytes() == (third.prepared / file.name).read_bytes(), file.name


def test_without_corrections_the_prepared_data_is_that_without_a_file(plain, tmp_path, shapes_folder):
    (tmp_path / "plain/data/corrections.csv").unlink()
    params = Params(data=DataParams(source="folder", path=str(shapes_folder), image_size=16))
    prepare(params, Workspace(tmp_path / "bare"))
    for file in (tmp_path / "plain/data/prepared").iterdir():
        assert file.read_bytes() == (tmp_path / "bare/data/prepared" / file.name).read_bytes(), file.name


def test_corrected_group_stays_in_one_split(plain, tmp_path, shapes_folder):
    members = list(plain.index[::7])
    corrections = [{"path": path, "action": "group", "value": "tile 4"} for path in members]
    workspace = _prepare(tmp_path / "out", shapes_folder, corrections)
    manifest = _manifest(workspace)
    assert set(manifest.loc[members, "group"]) == {"tile 4"}
    assert len(set(manifest.loc[members, "split"])) == 1
    assert PackedDataset.open(workspace.prepared).info["corrections"] == {"group": len(members)}


def test_pixels_name_all_their_copies(tmp_path, shapes_folder):
    shutil.copy(shapes_folder / "bar/g0_00.png", shapes_folder / "dot/copy.png")
    sha256 = _manifest(_prepare(tmp_path / "plain", shapes_folder)).loc["dot/copy.png", "sha256"]
    correction = {"path": "", "sha256": sha256, "action": "relabel", "value": "stripe"}
    workspace = _prepare(tmp_path / "out", shapes_folder, [correction])
    assert set(_manifest(workspace).loc[["dot/copy.png", "bar/g0_00.png"], "label"]) == {"stripe"}
    info = json.loads((workspace.prepared / "dataset.json").read_text())
    assert info["conflicting_labels"] == []  # the correction has resolved it
    assert info["corrections"] == {"relabel": 2}
    twice = [correction, {"path": "dot/copy.png", "action": "drop"}]
    with pytest.raises(UdcError, match=r"dot/copy.png: is corrected twice, by its path and by its pixels"):
        _prepare(tmp_path / "twice", shapes_folder, twice)


def test_changed_and_missing_images_and_classes_are_errors_that_name_them(plain, tmp_path, shapes_folder):
    sha256 = plain.loc["bar/g0_00.png", "sha256"]
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(shapes_folder / "bar/g0_00.png")
    corrections = [{"path": "bar/g0_00.png", "sha256": sha256, "action": "drop"},
                   {"path": "", "sha256": "0" * 64, "action": "keep"}]  # fmt: skip
    with pytest.raises(UdcError) as error:
        _prepare(tmp_path / "out", shapes_folder, corrections)
    first, changed, missing = str(error.value).splitlines()
    assert first == f"{tmp_path}/out/data/corrections.csv: 2 correction(s) do not fit the images:"
    assert changed.startswith("  bar/g0_00.png: has changed since it was corrected (sha256 ")
    assert changed.endswith(f", was {sha256}); look at it again, and write its new sha256 or remove the line")
    assert missing == (f"  sha256 {'0' * 64}: there is no such image in data.path; restore it, or remove the line")
    corrections = [{"path": "bar/lost.png", "action": "keep"},
                   {"path": "dot/g1_01.png", "action": "relabel", "value": "bars"}]  # fmt: skip
    with pytest.raises(UdcError) as error:
        _prepare(tmp_path / "out", shapes_folder, corrections)
    assert str(error.value).splitlines()[1:] == [
        "  bar/lost.png: there is no such image in data.path; restore it, or remove the line",
        "  dot/g1_01.png: bars is no class; the classes are bar, dot, stripe",
    ]


def test_unusable_image_can_be_dropped_only(tmp_path, shapes_folder):
    (shapes_folder / "bar/g0_00.png").write_bytes(b"damaged")
    workspace = _prepare(tmp_path / "out", shapes_folder, [{"path": "bar/g0_00.png", "action": "drop"}])
    info = json.loads((workspace.prepared / "dataset.json").read_text())
    assert (info["rejected"], info["images"], info["corrections"]) == (0, 59, {"drop": 1})
    assert info["left_out"] == {"dropped by data/corrections.csv": 1}
    with pytest.raises(UdcError, match=r"bar/g0_00.png: cannot be used \(.*\); drop it, or remove the line"):
        _prepare(tmp_path / "out", shapes_folder, [{"path": "bar/g0_00.png", "action": "keep"}])


def test_frame_of_a_file_is_corrected(tmp_path, shapes_folder):
    frames = [Image.fromarray(np.full((24, 24), 40 * k, np.uint8)) for k in range(4)]
    frames[0].save(shapes_folder / "bar/pages.tif", save_all=True, append_images=frames[1:])
    correction = {"path": "bar/pages.tif#2", "action": "relabel", "value": "dot"}
    manifest = _manifest(_prepare(tmp_path / "out", shapes_folder, [correction], frames="each"))
    labels = [manifest.loc[f"bar/pages.tif#{k}", "label"] for k in range(1, 5)]
    assert labels == ["bar", "dot", "bar", "bar"]


def test_correction_that_leaves_a_split_without_a_class_is_an_error(plain, tmp_path, shapes_folder):
    test = plain[(plain["split"] == "test") & (plain["label"] == "bar")].index
    with pytest.raises(UdcError, match=r"bar: \d+ image\(s\), none for test"):
        _prepare(tmp_path / "out", shapes_folder, [{"path": path, "action": "drop"} for path in test])


def test_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "corrections.csv"
    corrections = [Correction("a,b/ü.png", "", "relabel", "x,y", "Ada", "2026-01-31", 'says "no"\nreally'),
                   Correction("", "a" * 64, "drop")]  # fmt: skip
    write_corrections(path, corrections)
    assert read_corrections(path) == corrections
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n"))  # as spreadsheets write it
    assert [each.path for each in read_corrections(path)] == ["a,b/ü.png", ""]
    write_corrections(path, [])
    assert path.read_text() == EMPTY == "path,sha256,action,value,author,date,reason\n"


def test_new_decision_about_an_image_replaces_the_old_one():
    old = [Correction("a.png", "", "keep"), Correction("a.png", "", "group", "g"), Correction("b.png", "", "drop")]
    new = Correction("a.png", "0" * 64, "drop")
    assert with_correction(old, new) == [*old[1:], new]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "line 1: must be the header path,sha256,action,value,author,date,reason"),
        ("", "line 1: must be the header"),
        (EMPTY + "a.png,,drop\n", "line 2: has 3 values instead of 7"),
        (EMPTY + ",,drop,,,,\n", "line 2: names no image; fill in path, sha256 or both"),
        (EMPTY + "../a.png,,drop,,,,\n", "line 2: path is ../a.png; must be relative to data.path"),
        (EMPTY + "/etc/passwd,,drop,,,,\n", "line 2: path is /etc/passwd; must be relative"),
        (EMPTY + "a\\..\\b.png,,drop,,,,\n", "must be relative"),
        (EMPTY + "a.png,123,drop,,,,\n", "line 2: sha256 is 123; must have 64 characters"),
        (EMPTY + "a.png,,delete,,,,\n", "line 2: action is 'delete'; allowed: relabel, drop, keep, group"),
        (EMPTY + "a.png,,relabel,,,,\n", "line 2: relabel needs a value"),
        (EMPTY + "a.png,,drop,x,,,\n", "line 2: drop has a value, which must be empty"),
        (EMPTY + "a.png,,drop,,,1.2.2026,\n", "line 2: date is '1.2.2026'; must be a date as 2026-01-31"),
        (EMPTY + "a.png,,drop,,,,\na.png,,keep,,,,\n", "line 3: a.png is corrected in line 2 already"),
        (EMPTY + 'a.png,,drop,,,,"x\ny"\nb.png,,delete,,,,\n', "line 4: action is 'delete'"),
        (EMPTY + "a.png,,drop,,,," + "x" * 5000 + "\n", "line 2: reason has more than 4,096 characters"),
        (EMPTY + "a.png,,drop,,,," + "x" * 200_000 + "\n", "cannot be read as CSV"),
        (EMPTY + 'a.png,,drop,,,,"x\n', "cannot be read as CSV"),
        (EMPTY.encode() + b"\xff,,drop,,,,\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_invalid_file_is_an_error_that_names_the_line(text, message, tmp_path):
    path = tmp_path / "corrections.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UdcError) as error:
        read_corrections(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


def test_file_larger_than_its_bound_is_not_read(tmp_path):
    path = tmp_path / "corrections.csv"
    with path.open("wb") as handle:
        handle.truncate(2**30)
    with pytest.raises(UdcError, match="more than the 67,108,864 that are read"):
        read_corrections(path)
