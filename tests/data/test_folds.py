"""Folds: each image is tested once in each repeat, classes have equal shares, groups and copies stay together."""

import csv

import numpy as np
import pytest

from udc_model.config import SPLITS, DataParams, Params, SplitShares
from udc_model.data.folds import ImagePool
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare

TEST = SPLITS.index("test")


def _prepare(folder, root, **data):
    workspace = Workspace(folder)
    prepare(Params(data=DataParams(**{"source": "auto", "path": str(root), "image_size": 16} | data)), workspace)
    return PackedDataset.open(workspace.prepared)


def test_every_image_is_tested_once_in_each_repeat(tmp_path, shapes_folder):
    pool = ImagePool.of(_prepare(tmp_path, shapes_folder))
    folds = pool.folds(5, 2, SplitShares(), 7)
    assert [(fold.repeat, fold.number) for fold in folds] == [(r, k) for r in (1, 2) for k in range(1, 6)]
    for repeat in (1, 2):
        tested = sum((fold.splits == TEST).astype(int) for fold in folds if fold.repeat == repeat)
        assert (tested == 1).all()
    for fold in folds:
        counts = fold.counts(pool.labels, pool.dataset.classes)
        assert counts["test"] == {"bar": 4, "dot": 4, "stripe": 4}
        assert sum(sum(each.values()) for each in counts.values()) == 60
        assert counts["train"]["bar"] == pytest.approx(16 * 0.6 / 0.85, abs=1)
    assert (folds[0].splits != folds[5].splits).any()
    again = pool.folds(5, 3, SplitShares(), 7)
    assert all((a.splits == b.splits).all() for a, b in zip(folds, again, strict=False))
    assert (pool.folds(5, 1, SplitShares(), 8)[0].splits != folds[0].splits).any()


def test_groups_and_copies_are_not_divided(tmp_path, shapes_folder):
    for i in range(3):
        (shapes_folder / "bar" / f"g{i}_copy.png").write_bytes((shapes_folder / "bar" / "g7_07.png").read_bytes())
    pool = ImagePool.of(_prepare(tmp_path, shapes_folder, group=r"^(g\d)_"))
    for fold in pool.folds(3, 2, SplitShares(), 1):
        table = pool.rows.assign(fold=fold.splits)
        assert table.groupby("group")["fold"].nunique().max() == 1
        assert table.groupby("sha256")["fold"].nunique().max() == 1


def test_a_prescribed_test_split_is_in_no_fold(tmp_path, shapes_folder):
    paths = sorted(path.relative_to(shapes_folder).as_posix() for path in shapes_folder.rglob("*.png"))
    with (shapes_folder / "labels.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "label", "split"])
        writer.writerows([path, path.split("/")[0], "test" if i % 5 == 0 else ""] for i, path in enumerate(paths))
    dataset = _prepare(tmp_path, shapes_folder)
    assert dataset.info["prescribed_splits"] == ["test"]
    pool = ImagePool.of(dataset)
    assert (pool.kept_out, len(pool.rows)) == (12, 48)
    assert not set(pool.rows["path"]) & set(paths[::5])


def test_a_fold_has_the_prepared_images_and_its_own_statistics(tmp_path, shapes_folder):
    dataset = _prepare(tmp_path / "whole", shapes_folder)
    pool = ImagePool.of(dataset)
    pool.write_images(tmp_path / "images.bin")
    pixels = {path: np.asarray(image) for name in SPLITS
              for path, image in zip(dataset.split(name).paths, dataset.split(name).images, strict=True)}  # fmt: skip
    first, second = pool.folds(5, 1, SplitShares(), 7)[:2]
    digests = set()
    for fold in (first, second):
        folder = tmp_path / fold.name
        folder.mkdir()
        pool.write(fold, folder, tmp_path / "images.bin")
        of_fold = PackedDataset.open(folder)
        digests.add(of_fold.info["digest"])
        for k, name in enumerate(SPLITS):
            split = of_fold.split(name)
            assert set(split.paths) == set(pool.rows["path"][fold.splits == k])
            for path, image, label in zip(split.paths, split.images, split.labels, strict=True):
                assert (np.asarray(image) == pixels[path]).all()
                assert path.startswith(of_fold.classes[label])
        train = np.asarray(of_fold.split("train").images).reshape(-1, 3) / 255
        assert of_fold.preprocessing.mean == pytest.approx(train.mean(axis=0))
        assert of_fold.notes[0] == f"fold {fold.number} of repeat 1 of a cross-validation"
    assert len(digests) == 2


@pytest.mark.parametrize(("folds", "dots"), [(7, 6), (30, 20)])  # with 30, ten folds would have no image at all
def test_too_few_images_of_a_class_are_named(tmp_path, shapes_folder, folds, dots):
    for path in sorted((shapes_folder / "dot").iterdir())[dots:]:
        path.unlink()
    pool = ImagePool.of(_prepare(tmp_path, shapes_folder))
    message = rf"(?s)--folds: too few images for {folds} folds .*dot: {dots} image\(s\), none for .* of fold \d+\nL"
    with pytest.raises(UdcError, match=message):
        pool.folds(folds, 1, SplitShares(), 1)
