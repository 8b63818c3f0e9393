"""Tests of the stage prepare with real files, and of the errors for invalid sources."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from udc_model.config import SPLITS, CostParams, CsvFile, DataParams, ModelParams, Params
from udc_model.data.packed import PackedDataset
from udc_model.data.stored_images import StoredImages
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare


def _params(root, **data):
    return Params(data=DataParams(**{"source": "folder", "path": str(root), "image_size": 16} | data))


def _prepare(tmp_path, params):
    workspace = Workspace(tmp_path / "out")
    prepare(params, workspace)
    return PackedDataset.open(workspace.prepared)


def _write_csv(path, rows, header=("image_path", "label")):
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)


def test_folder_source_is_packed(tmp_path, shapes_folder):
    dataset = _prepare(tmp_path, _params(shapes_folder))
    assert dataset.classes == ["bar", "dot", "stripe"]
    assert len(list(dataset.folder.iterdir())) == 10  # independent of the number of images
    assert sum(len(dataset.split(name)) for name in SPLITS) == 60
    train = dataset.split("train")
    pixels = np.asarray(train.images).reshape(-1, 3) / 255
    assert dataset.preprocessing.mean == pytest.approx(pixels.mean(axis=0))
    assert dataset.preprocessing.std == pytest.approx(pixels.std(axis=0))
    for name in SPLITS:
        split = dataset.split(name)
        for image, label, path in zip(split.images, split.labels, split.paths, strict=True):
            assert path.startswith(dataset.classes[label] + "/")
            original = Image.open(shapes_folder / path)
            assert (dataset.preprocessing.to_stored(original) == image).all()
    assert isinstance(train.images, StoredImages)


def test_groups_are_not_divided(tmp_path, shapes_folder):
    dataset = _prepare(tmp_path, _params(shapes_folder, group=r"^(g\d+)_"))
    assert dataset.manifest.groupby("group")["split"].nunique().max() == 1
    assert dataset.manifest["group"].nunique() == 10


def test_digest_does_not_depend_on_location_or_processes(tmp_path, shapes_folder, monkeypatch):
    import shutil

    from udc_model.data import workers

    first = _prepare(tmp_path / "a", _params(shapes_folder))
    shutil.copytree(shapes_folder, tmp_path / "moved")
    monkeypatch.setattr(workers, "_MIN_ITEMS", 1)
    second = _prepare(tmp_path / "b", _params(tmp_path / "moved"))
    assert first.info["digest"] == second.info["digest"]
    for name in ("manifest.csv", "dataset.json", "train.npy"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_csv_source_with_columns_split_and_group(tmp_path, shapes_folder):
    rows = []
    for i, path in enumerate(sorted(shapes_folder.rglob("*.png"))):
        relative = path.relative_to(shapes_folder).as_posix()
        rows.append([relative, path.parent.name, "test" if i % 5 == 0 else "", f"group{i}"])
    _write_csv(shapes_folder / "labels.csv", rows, ("image_path", "label", "split", "group"))
    dataset = _prepare(tmp_path, _params(shapes_folder, source="csv"))
    test_paths = {row[0] for row in rows if row[2] == "test"}
    assert set(dataset.split("test").paths) == test_paths
    assert len(dataset.split("train")) + len(dataset.split("validation")) + len(dataset.split("calibration")) == 48
    assert dataset.split("train").groups[0].startswith("group")


def test_csv_file_with_a_fixed_split(tmp_path, shapes_folder):
    paths = [p.relative_to(shapes_folder).as_posix() for p in sorted(shapes_folder.rglob("*.png"))]
    _write_csv(shapes_folder / "a.csv", [[p, p.split("/")[0]] for i, p in enumerate(paths) if i % 4])
    _write_csv(shapes_folder / "b.csv", [[p, p.split("/")[0]] for i, p in enumerate(paths) if not i % 4])
    params = _params(shapes_folder, source="csv", csv_files=["a.csv", CsvFile(file="b.csv", split="test")])
    assert set(_prepare(tmp_path, params).split("test").paths) == set(paths[::4])


def test_copies_stay_in_one_split_and_conflicting_labels_are_listed(tmp_path, shapes_folder, caplog):
    for i in range(10):
        (shapes_folder / "bar" / f"copy{i}.png").write_bytes((shapes_folder / "bar" / f"g{i}_{i:02d}.png").read_bytes())
    (shapes_folder / "dot" / "mislabelled.png").write_bytes((shapes_folder / "bar" / "g0_00.png").read_bytes())
    dataset = _prepare(tmp_path, _params(shapes_folder))
    assert dataset.manifest.groupby("sha256")["split"].nunique().max() == 1
    assert dataset.info["duplicates"] == {"copies": 11, "left_out": 0}
    assert dataset.info["conflicting_labels"] == [
        [["bar/copy0.png", "bar"], ["bar/g0_00.png", "bar"], ["dot/mislabelled.png", "dot"]]
    ]
    assert "identical images with different labels" in caplog.text


@pytest.mark.parametrize("copies", ["leave_out", "keep"])
def test_copies_of_images_in_later_splits_are_left_out_of_training(tmp_path, shapes_folder, copies, caplog):
    """The user's test set is unchanged; an image without a split that is a copy of a test image is left out too."""
    caplog.set_level("INFO")
    paths = [p.relative_to(shapes_folder).as_posix() for p in sorted(shapes_folder.rglob("*.png"))]
    rows = [[p, p.split("/")[0], SPLITS[i % 4]] for i, p in enumerate(paths)]
    for i, (original, split) in enumerate([(3, "train"), (3, "validation"), (1, "train"), (7, ""), (4, "")]):
        (shapes_folder / "bar" / f"copy{i}.png").write_bytes((shapes_folder / paths[original]).read_bytes())
        rows.append([f"bar/copy{i}.png", "bar", split])
    _write_csv(shapes_folder / "labels.csv", rows, ("image_path", "label", "split"))
    dataset = _prepare(tmp_path, _params(shapes_folder, source="csv", copies=copies))
    assert set(dataset.split("test").paths) >= {path for path, _, split in rows if split == "test"}
    split_of = dict(zip(dataset.manifest["path"], dataset.manifest["split"], strict=True))
    if copies == "keep":
        assert len(dataset.manifest) == 65
        assert [split_of[f"bar/copy{i}.png"] for i in range(3)] == ["train", "validation", "train"]
        assert dataset.info["duplicates"] == {"copies": 5, "left_out": 0}
        assert "4 image(s) have the pixels of images in a later split (test 3, validation 1) and remain" in caplog.text
        return
    assert len(dataset.split("test")) == 15
    assert [f"bar/copy{i}.png" in split_of for i in range(5)] == [False, False, False, False, True]
    assert split_of["bar/copy4.png"] == "train"
    assert dataset.info["duplicates"] == {"copies": 5, "left_out": 4}
    assert dataset.info["left_out"]["copy of an image in the test split"] == 3
    with (dataset.folder / "left_out.csv").open() as handle:
        assert ["bar/copy0.png", "copy of an image in the test split"] in list(csv.reader(handle))
    note = "4 image(s) are left out, because they have the pixels of images in a later split (test 3, validation 1)"
    assert dataset.info["notes"] == [note]
    assert "; 4 left out as copies" in caplog.text


def _add_bad_images(root):
    """Add unusable files; return a part of the expected reason by path."""
    content = (root / "bar" / "g0_00.png").read_bytes()
    (root / "bar" / "empty.jpg").write_bytes(b"")
    (root / "dot" / "text.png").write_text("This is text")
    (root / "dot" / "short.png").write_bytes(content[: len(content) // 2])
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    Image.new("1", (50_000, 50_000)).save(root / "stripe" / "bomb.png")
    Image.MAX_IMAGE_PIXELS = limit
    return {
        "bar/empty.jpg": "empty",
        "dot/text.png": "not an image",
        "dot/short.png": "damaged",
        "stripe/bomb.png": "more than data.max_pixels",
    }


@pytest.mark.slow
def test_one_error_lists_all_bad_images(tmp_path, shapes_folder):
    reasons = _add_bad_images(shapes_folder)
    with pytest.raises(UdcError, match=r"4 of 64 image\(s\) cannot be used") as error:
        _prepare(tmp_path, _params(shapes_folder))
    for path, reason in reasons.items():
        assert any(path in line and reason in line for line in str(error.value).splitlines()), path
    assert not (tmp_path / "out" / "data" / "prepared").exists()
    assert not list((tmp_path / "out" / "data").iterdir())


@pytest.mark.slow
def test_bad_images_can_be_skipped(tmp_path, shapes_folder):
    reasons = _add_bad_images(shapes_folder)
    dataset = _prepare(tmp_path, _params(shapes_folder, on_bad_image="skip"))
    with (dataset.folder / "left_out.csv").open() as handle:
        rejected = {row["path"]: row["reason"] for row in csv.DictReader(handle)}
    assert rejected.keys() == reasons.keys()
    assert dataset.info["rejected"] == 4
    assert not set(dataset.manifest["path"]) & set(reasons)


def _one_image_class(root):
    (root / "rare").mkdir()
    (root / "bar" / "g0_00.png").rename(root / "rare" / "a.png")
    return {}, r"rare: 1 image\(s\), none for validation, calibration, test"


def _empty_class(root):
    (root / "void").mkdir()
    return {}, "no images in the class folder void"


def _empty_folder(root):
    import shutil

    for folder in list(root.iterdir()):
        shutil.rmtree(folder)
    return {}, "contains no images"


def _path_outside(root):
    _write_csv(root / "labels.csv", [["../secret.png", "a"], ["/etc/passwd", "b"], ["bar/none.png", "b"]])
    return {"source": "csv"}, r"leaves the data folder"


def _missing_column(root):
    _write_csv(root / "labels.csv", [["bar/a.png", "a"]], ("where", "label"))
    return {"source": "csv"}, r"labels\.csv: has no column of images \(image_path, path, .*its columns are where, label"


def _unknown_label(root):
    paths = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.png"))]
    _write_csv(root / "a.csv", [[p, p.split("/")[0]] for p in paths[:-1]])
    _write_csv(root / "b.csv", [[paths[-1], "strpie"]])
    return {"source": "csv", "csv_files": ["a.csv", "b.csv"]}, r"b\.csv:2: the label 'strpie' is not among the classes"


def _missing_csv(root):
    return {"source": "csv"}, r"labels\.csv: no such file"


def _csv_outside(root):
    return {"source": "csv", "csv_files": ["../labels.csv"]}, "leaves the data folder"


def _divided_group(root):
    paths = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.png"))]
    rows = [[p, p.split("/")[0], SPLITS[i % 4], "g"] for i, p in enumerate(paths)]
    _write_csv(root / "labels.csv", rows, ("image_path", "label", "split", "group"))
    return {"source": "csv"}, r"puts 1 group\(s\) into several splits: g .*; give each group one split"


def _unmatched_group(root):
    return {"group": r"^(x\d+)_"}, r"60 image\(s\) belong to no group or subgroup"


def _pattern_without_parentheses(root):
    return {"group": r"^g\d+"}, r"data\.group: .* must be a column of the CSV file, or a regular expression with"


def _one_colour(root):
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", (8 + i, 8), (9, 9, 9)).save(path)
    return {}, "same value in all pixels"


@pytest.mark.parametrize(
    "make_invalid",
    [_one_image_class, _empty_class, _empty_folder, _path_outside, _missing_column, _unknown_label, _missing_csv,
     _csv_outside, _divided_group, _unmatched_group, _pattern_without_parentheses, _one_colour],
)  # fmt: skip
def test_invalid_source_raises_and_writes_nothing(make_invalid, tmp_path, shapes_folder):
    changes, message = make_invalid(shapes_folder)
    with pytest.raises(UdcError, match=message):
        _prepare(tmp_path, _params(shapes_folder, **changes))
    assert not (tmp_path / "out" / "data" / "prepared").exists()


def test_too_little_space_is_an_error_before_an_image_is_decoded(tmp_path, shapes_folder, monkeypatch):
    from udc_model.data import audit, preflight

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: SimpleNamespace(free=60 * 16 * 16 * 3))
    monkeypatch.setattr(audit, "decode_frames", None)
    with pytest.raises(UdcError, match=r"data: needs 0\.0 GiB for 60 prepared images of 16 px, but 0\.0 GiB"):
        _prepare(tmp_path, _params(shapes_folder))


def test_time_disk_and_memory_are_estimated_before_many_images_are_read(tmp_path, shapes_folder, monkeypatch, caplog):
    from udc_model.data import preflight

    caplog.set_level("INFO")
    monkeypatch.setattr(preflight, "_MIN_IMAGES", 60)
    (shapes_folder / "bar" / "g0_00.png").write_bytes(b"damaged")
    _prepare(tmp_path, _params(shapes_folder, on_bad_image="skip"))
    assert (
        "reading the images takes roughly 0 s with 1 process(es), 0.0 GiB of disk and 0.1 GiB of memory" in caplog.text
    )
    assert caplog.text.index("reading the images takes") < caplog.text.index("prepared 59 images")


def test_missing_folder_raises(tmp_path):
    with pytest.raises(UdcError, match=r"data\.path: .* is not a folder"):
        _prepare(tmp_path, _params(tmp_path / "nowhere"))


def test_parameters_that_contradict_the_classes_raise(tmp_path, shapes_folder):
    params = _params(shapes_folder)
    for changed, message in (
        (params.model_copy(update={"model": ModelParams(num_labels=2)}), r"model\.num_labels: is 2, .* 3 classes"),
        (
            params.model_copy(update={"costs": CostParams(order=["bar"])}),
            r"order: 2 classes are missing: dot, stripe",
        ),
    ):
        with pytest.raises(UdcError, match=message):
            _prepare(tmp_path, changed)


def test_open_raises_for_a_damaged_prepared_folder(tmp_path, shapes_folder):
    dataset = _prepare(tmp_path, _params(shapes_folder))
    with pytest.raises(UdcError, match="run `dvc repro prepare` first"):
        PackedDataset.open(tmp_path)
    with (dataset.folder / "train.npy").open("ab") as file:
        file.write(b"0")
    with pytest.raises(UdcError, match=r"train\.npy: has [\d,]+ bytes of pixels instead of [\d,]+; run"):
        dataset.split("train")
    (dataset.folder / "train.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UdcError, match=r"train\.npy: cannot be read"):
        dataset.split("train")
    (dataset.folder / "dataset.json").write_text("{")
    with pytest.raises(UdcError, match=r"dataset\.json: differs from its checksum"):
        PackedDataset.open(dataset.folder)
    (dataset.folder / "checksums.json").unlink()
    with pytest.raises(UdcError, match=r"dataset\.json: cannot be read"):
        PackedDataset.open(dataset.folder)
