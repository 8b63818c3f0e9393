"""Layouts of folders: what is a split, what is a class, and the error that shows the folders."""

import re
from pathlib import Path

import pytest

from udc_model.data.sources.folders import find_layout
from udc_model.data.sources.labels import Labels
from udc_model.data.sources.listing import Listing
from udc_model.errors import UdcError

NAMES = [f"{k:02d}.png" for k in range(12)]


def _paths(*folders, names=NAMES):
    return [f"{folder}/{name}" for folder in folders for name in names]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "dev", "test"),
     ("training", "valid", "TEST"), ("TrainVal", "validation", "test")],
)  # fmt: skip
def test_split_folders_are_recognised_and_calibration_is_carved_from_train(
    tmp_path, write_images, prepared, train, validation, test, caplog
):
    caplog.set_level("INFO")
    root = tmp_path / "set"
    write_images(root, *_paths(*(f"{split}/{name}" for split in (train, validation, test) for name in ("ant", "bee"))))
    dataset = prepared(root)
    assert dataset.classes == ["ant", "bee"]
    assert {p.split("/")[0] for p in dataset.split("test").paths} == {test}
    assert {p.split("/")[0] for p in dataset.split("validation").paths} == {validation}
    assert {p.split("/")[0] for p in dataset.split("train").paths + dataset.split("calibration").paths} == {train}
    assert [len(dataset.split(name)) for name in ("train", "validation", "calibration", "test")] == [20, 24, 4, 24]
    assert dataset.info["counts"]["calibration"] == {"ant": 2, "bee": 2}
    assert "found split folders with class folders in them" in caplog.text
    assert "splits as found: train 24, validation 24, test 24" in caplog.text
    assert "the data has no split calibration: carved from train" in caplog.text


def test_train_and_val_alone_leave_test_and_calibration_to_be_carved(tmp_path, write_images, prepared):
    root = tmp_path / "set"
    write_images(root, *_paths("train/ant", "train/bee", "val/ant", "val/bee"))
    dataset = prepared(root)
    assert {p.split("/")[0] for p in dataset.split("validation").paths} == {"val"}
    assert len(dataset.split("test")) > 0
    assert {p.split("/")[0] for p in dataset.split("test").paths} == {"train"}
    with pytest.raises(UdcError, match=r"the data has no split calibration and test; add it, .*data.carve: true"):
        prepared(root, carve=False)


def test_groups_are_not_divided_by_carving(tmp_path, write_images, prepared):
    root = tmp_path / "set"
    for split in ("train", "test"):
        names = [f"{split}{k // 2}_{k}.png" for k in range(24)]
        write_images(root, *_paths(f"{split}/ant", f"{split}/bee", names=names))
    dataset = prepared(root, group=r"^([a-z]+\d+)_")
    assert len(dataset.split("test")) == 48
    carved = dataset.manifest[dataset.manifest["path"].str.startswith("train/")]
    assert set(carved["split"]) == {"train", "validation", "calibration"}
    assert carved.groupby("group")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["ant/train", "ant/test", "bee/train", "bee/test"], {"classes": ["ant", "bee"], "test": 24}),
        (["archive/data/ant", "archive/data/bee"], {"classes": ["ant", "bee"]}),
        (["set/train/ant", "set/train/bee", "set/test/ant", "set/test/bee"], {"classes": ["ant", "bee"], "test": 24}),
        (["insects/ant", "insects/bee", "spiders/wolf"], {"classes": ["insects", "spiders"]}),
        (["bus", "car", "train"], {"classes": ["bus", "car", "train"]}),
        (
            ["training_set/ant", "training_set/bee", "test_set/ant", "test_set/bee"],
            {"classes": ["ant", "bee"], "test": 24},
        ),
        (["Seg Train/ant", "Seg Train/bee", "seg-val/ant", "seg-val/bee"], {"classes": ["ant", "bee"]}),
        (["car", "steam_train", "test_tube"], {"classes": ["car", "steam_train", "test_tube"]}),
        (["steam_train/day", "test_tube/night"], {"classes": ["steam_train", "test_tube"]}),
        (["car/x", "steam_train/x", "test_tube/x"], {"classes": ["car", "steam_train", "test_tube"]}),
        (["train_1/train", "train_1/test", "test_1/train", "test_1/test"], {"classes": ["test_1", "train_1"]}),
        (["photo.jpg", "ant"], {"classes": ["ant", "photo.jpg"]}),
        (["Ant", "ant"], {"classes": ["Ant", "ant"]}),
    ],
)
def test_other_layouts(tmp_path, write_images, prepared, folders, expected):
    root = tmp_path / "set"
    write_images(root, *_paths(*folders))
    dataset = prepared(root)
    assert dataset.classes == expected["classes"]
    assert sum(len(dataset.split(name)) for name in ("train", "validation", "calibration", "test")) == 12 * len(folders)
    if "test" in expected:
        assert len(dataset.split("test")) == expected["test"]
        assert all(re.search("(^|/)test(_set)?/", path) for path in dataset.split("test").paths)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.png", "b.png"], "has images but no class folders"),
        (["ant/a.png"], r"has 1 class\(es\) \(ant\); at least 2 are needed"),
        (["ant/a.png", "bee/a.png", "void/.hidden"], "no images in the class folder void"),
        (["train/a.png", "val/b.png"], "has no class folders in train, val; if these folders are classes"),
        (["val/ant/a.png", "test/ant/b.png"], "has no folder train beside test, val"),
        (["train/ant/a.png", "test/ant/a.png", "extra/ant/a.png"],
         r"are named after splits, others are not \(extra\): move those out of data.path; if these folders are"),
        (["train/ant/a.png", "train/bee/a.png", "test/a.png"],
         "has no class folders in test, so the images there have no class: move them out of data.path"),
        (["seg_train/ant/a.png", "seg_test/ant/a.png", "seg_pred/a.png"], r"\(seg_pred\): move those out of data.path"),
        (["training_set/training_set/ant/a.png", "test_set/test_set/ant/a.png"],
         "test_set, training_set seem to be splits, but do not have the same class folders in them; if these folders"),
        (["train_images/a.png", "test_images/b.png"], "test_images, train_images seem to be splits"),
        (["train/ant/a.png", "train/bee/a.png", "test_images/b.png"], "test_images, train seem to be splits"),
        (["train/ant/a.png", "val/ant/a.png", "valid/bee/a.png"], "has several folders for the split validation"),
        ([], "contains no images"),
    ],
)  # fmt: skip
def test_unclear_folders_are_an_error_that_shows_them(tmp_path, write_images, inspected, paths, message):
    root = tmp_path / "set"
    root.mkdir()
    (root / "notes.txt").write_text("no image")
    write_images(root, *paths)
    status, text = inspected(root)
    assert status == 1
    assert re.search(message, text), text
    assert f"Found:\n  set/ {sum(p.endswith('.png') for p in paths)} image(s)" in text
    assert "Traceback" not in text


def test_classes_named_like_splits_can_be_listed(tmp_path, write_images, prepared):
    root = tmp_path / "set"
    write_images(root, *_paths("train", "test"))
    assert prepared(root, classes=["train", "test"]).classes == ["test", "train"]


def test_a_table_of_files_that_do_not_exist_is_an_error_that_names_them(tmp_path, inspected):
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"{k}.png,{'ab'[k % 2]}\n" for k in range(12)))
    status, text = inspected(tmp_path)
    assert status == 1
    assert f"{tmp_path}: no image can be used\n  0.png: no such file (" in text
    assert text.rstrip().endswith("  and 2 more")


def test_images_beside_class_folders_are_left_out_and_counted(tmp_path, write_images, inspected, prepared):
    root = tmp_path / "set"
    write_images(root, *_paths("ant", "bee"), "overview.png", "ant/more/13.png")
    status, text = inspected(root)
    assert status == 0
    assert "25 images of 2 classes: ant 13, bee 12" in text
    assert "left out: 1 × outside the class folders (overview.png)" in text
    assert "1 folder(s) inside class folders belong to the class: more" in text
    assert "formats: PNG RGB 25; sizes 8 x 8 to 8 x 8 pixels" in text
    assert prepared(root).info["left_out"] == {"outside the class folders": 1}


def test_folders_of_other_files_beside_the_folder_of_images_are_no_classes(tmp_path, write_images, inspected):
    write_images(tmp_path, *_paths("images/ant", "images/bee"))
    (tmp_path / "annotations").mkdir()
    assert "no images in the class folder annotations" in inspected(tmp_path)[1]  # a class that lacks its images
    (tmp_path / "annotations/boxes.xml").write_text("<box/>")
    status, text = inspected(tmp_path)
    assert status == 0
    assert text.startswith("found class folders in images/\n24 images of 2 classes: ant 12, bee 12\n")


def test_explicit_folder_source_ignores_tables(tmp_path, write_images, prepared):
    root = tmp_path / "set"
    write_images(root, *_paths("ant", "bee"))
    (root / "labels.csv").write_text("image,label\nant/00.png,wasp\nbee/00.png,fly\n")
    assert prepared(root, source="folder").classes == ["ant", "bee"]


def test_split_seed_changes_the_splits_and_seed_does_not(tmp_path, write_images, prepared):
    from udc_model.config import DataParams, Params
    from udc_model.data.packed import PackedDataset
    from udc_model.files import Workspace
    from udc_model.stages.prepare import prepare

    root = tmp_path / "set"
    write_images(root, *_paths("ant", "bee"))

    def test_paths(seed, split_seed):
        workspace = Workspace(tmp_path / f"{seed}-{split_seed}")
        data = DataParams(source="auto", path=str(root), image_size=8, split_seed=split_seed)
        prepare(Params(seed=seed, data=data), workspace)
        return PackedDataset.open(workspace.prepared).split("test").paths

    assert test_paths(1, 7) == test_paths(2, 7) == test_paths(7, None)
    assert test_paths(1, 7) != test_paths(1, 8)


class Counted(list):
    """A list that counts how often all its entries are read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


def test_the_images_are_read_a_fixed_number_of_times_whatever_the_number_of_classes():
    reads = []
    for count in (2, 50):
        folders = [f"class {k}" for k in range(count)]
        listing = Listing(Counted(_paths(*folders)), Counted([*folders, *(f"{each}/test" for each in folders)]))
        find_layout(Path("set"), listing, Labels({}), None)
        reads.append((listing.images.reads, listing.folders.reads))
    assert reads[0] == reads[1]
