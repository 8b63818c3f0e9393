"""Subgroups by columns of a table and by patterns on the path, through stage prepare."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from udc_model.checksums import read_checksums, write_checksums
from udc_model.config import DataParams, Params
from udc_model.data.inspection import inspect
from udc_model.data.packed import PackedDataset
from udc_model.data.sources.subgroups import parse_divisions
from udc_model.data.subgroups import SUBGROUPS
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare

ROOT = Path(__file__).parents[3]
SITE = r"/(?P<site>g\d)_"


def _prepare(folder, root, **data):
    workspace = Workspace(folder)
    prepare(Params(data=DataParams(**{"source": "auto", "path": str(root), "image_size": 16} | data)), workspace)
    return PackedDataset.open(workspace.prepared)


def _table(root, cells):
    """A table with a column ``age band``, whose cells are given, beside the images."""
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    with (root / "labels.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "label", "age band", "flag"])
        writer.writerows([path, path.split("/")[0], cells[i % len(cells)], i % 2] for i, path in enumerate(paths))


def test_patterns_on_the_path(tmp_path, shapes_folder):
    dataset = _prepare(tmp_path / "out", shapes_folder, subgroups=[SITE, "^(?P<kind>[a-z])"])
    for name in ("train", "test"):
        paths, subgroups = dataset.split(name).paths, dataset.subgroups(name)
        assert subgroups == {"site": [path.split("/")[1][:2] for path in paths], "kind": [path[0] for path in paths]}


def test_columns_of_a_table_and_images_without(tmp_path, shapes_folder):
    _table(shapes_folder, ["<40", "", ">=40"])
    dataset = _prepare(tmp_path / "out", shapes_folder, subgroups=["age band", SITE])
    with (shapes_folder / "labels.csv").open(newline="") as handle:
        bands = {row["path"]: row["age band"] for row in csv.DictReader(handle)}
    paths, subgroups = dataset.split("test").paths, dataset.subgroups("test")
    assert subgroups["age band"] == [bands[path] for path in paths]
    assert subgroups["site"] == [path.split("/")[1][:2] for path in paths]
    text = "\n".join(inspect(DataParams(source="auto", path=str(shapes_folder), subgroups=["age band"])).lines)
    assert "subgroup: age band" in text
    assert "age band: <40 20, >=40 20; 20 images without" in text


def test_a_column_of_zeros_and_ones_is_no_class(tmp_path, shapes_folder):
    paths = sorted(path.relative_to(shapes_folder).as_posix() for path in shapes_folder.rglob("*.png"))
    with (shapes_folder / "labels.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "bar", "other", "flag"])
        writer.writerows([path, int(path[0] == "b"), int(path[0] != "b"), i % 2] for i, path in enumerate(paths))
    assert _prepare(tmp_path / "out", shapes_folder, subgroups=["flag"]).classes == ["bar", "other"]


def test_frames_have_the_subgroup_of_their_file(tmp_path, shapes_folder):
    from PIL import Image

    pages = [Image.fromarray(np.full((9, 9, 3), 40 * k, np.uint8)) for k in range(1, 4)]
    pages[0].save(shapes_folder / "bar" / "g7_scan.tif", save_all=True, append_images=pages[1:])
    dataset = _prepare(tmp_path / "out", shapes_folder, subgroups=[SITE], frames="each")
    found = {path: site for name in ("train", "validation", "calibration", "test")
             for path, site in zip(dataset.split(name).paths, dataset.subgroups(name)["site"], strict=True)
             if "scan" in path}  # fmt: skip
    assert found == {f"bar/g7_scan.tif#{k}": "g7" for k in (1, 2, 3)}


def test_only_files_that_no_training_run_depends_on_differ(tmp_path, shapes_folder):
    plain = _prepare(tmp_path / "plain", shapes_folder)
    divided = _prepare(tmp_path / "divided", shapes_folder, subgroups=[SITE])
    assert plain.subgroups("test") == {}
    files = {folder: {path.name: path.read_bytes() for path in folder.iterdir()} for folder in
             (plain.folder, divided.folder)}  # fmt: skip
    changed = {name for name in files[divided.folder] if files[plain.folder].get(name) != files[divided.folder][name]}
    assert changed == {SUBGROUPS, "checksums.json", "data_report.html"}
    assert files[divided.folder].keys() - files[plain.folder].keys() == {SUBGROUPS}
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    inputs = {Path(dep).name for dep in deps if dep.startswith("data/prepared")}
    assert inputs == files[plain.folder].keys() - {"checksums.json", "data_report.html", "left_out.csv", "test.npy"}


@pytest.mark.parametrize("damage", [b"path,site\n", b"", b"\xff", b'path,site\n"'])
def test_damaged_subgroups_are_one_line(tmp_path, shapes_folder, damage):
    dataset = _prepare(tmp_path / "out", shapes_folder, subgroups=[SITE])
    (dataset.folder / SUBGROUPS).write_bytes(damage)
    with pytest.raises(UdcError, match=r"subgroups\.csv: differs from its checksum"):
        dataset.subgroups("test")
    write_checksums(dataset.folder, list(read_checksums(dataset.folder, "").sha256))
    with pytest.raises(UdcError, match=r"subgroups\.csv: is damaged .*dvc checkout"):
        dataset.subgroups("test")


@pytest.mark.parametrize(("entries", "message"), [
    (["(?P<a>x"], r"'\(\?P<a>x' is not a regular expression"),
    (["(?P<a>x)(?P<b>y)"], r".* has 2 names; list one pattern for each"),
    (["site", " site"], "names site twice"),
])  # fmt: skip
def test_malformed_entries_are_refused(entries, message):
    with pytest.raises(UdcError, match=rf"^data\.subgroups: {message}"):
        parse_divisions(entries)


@pytest.mark.parametrize(("entries", "message"), [
    (["site"], r"^data\.subgroups: no table has a column 'site', because no table lists the images; a pattern on"),
    (["(?P<a>zzz)"], r"60 image\(s\) belong to no group or subgroup:\n  data\.subgroups: '\(\?P<a>zzz\)' does not "
                     r"match the path bar/g0_00\.png"),
    ([r"_(?P<n>\d\d)?"], None),
    ([r"(?P<n>.*)"], r"^data\.subgroups: 'n' has 60 values \(bar/g0_00\.png, .*use a column of bands"),
    ([r"x?(?P<n>y)?"], r"^data\.subgroups: no image has a value of 'n'"),
])  # fmt: skip
def test_subgroups_that_are_none_are_refused(tmp_path, shapes_folder, entries, message):
    if message is None:
        assert set(_prepare(tmp_path / "out", shapes_folder, subgroups=entries).subgroups("train")) == {"n"}
        return
    with pytest.raises(UdcError, match=message):
        _prepare(tmp_path / "out", shapes_folder, subgroups=entries)


def test_a_missing_column_is_named(tmp_path, shapes_folder):
    _table(shapes_folder, ["a"])
    with pytest.raises(UdcError, match=r"^data\.subgroups: .*labels\.csv has no column 'site'; its columns are path"):
        _prepare(tmp_path / "out", shapes_folder, source="csv", subgroups=["site"])
    with pytest.raises(UdcError, match=r"no table has a column 'site'(.|\n)*labels\.csv has no column 'site'"):
        _prepare(tmp_path / "out", shapes_folder, subgroups=["site"])


def test_the_digits_have_none(tmp_path):
    with pytest.raises(UdcError, match=r"^data\.subgroups: the digits have none"):
        prepare(Params(data=DataParams(subgroups=["site"])), Workspace(tmp_path))
