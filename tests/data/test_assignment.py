"""Which images are used, and in which split: a split of the user never changes, whatever connects it to another one."""

import numpy as np
import pytest

from udc_model.config import DataParams
from udc_model.data.assignment import UsableImage, assign_images
from udc_model.data.quality.near_duplicates import NearDuplicates
from udc_model.data.quality.units import grouped
from udc_model.data.scratch import Checked
from udc_model.data.sources import ImageRecord

SPLITS = ("train", "validation", "calibration", "test")
NEAR_TRAIN, NEAR_TEST = "a/near_train.png", "a/near_test.png"


def _image(path, split=None, group=None, pixels=None, is_dropped=False):
    return UsableImage(ImageRecord(path, path[0], split, group), Checked(8, 8, pixels or path, 0), path[0], is_dropped)


def _fixed():
    """Two images of two classes in each split; the first of class a in the train and test split have a group."""
    groups = {"a/train0.png": "patient 1", "a/test0.png": "patient 2"}
    paths = [(f"{label}/{split}{i}.png", split) for label in "ab" for split in SPLITS for i in range(2)]
    return [_image(path, split, groups.get(path)) for path, split in paths]


def _assigned(images, **data):
    params = DataParams(source="auto", path="x", **data)
    result = assign_images(sorted(images, key=lambda image: image.record.path), ["a", "b"], params, 0)
    return result, {image.record.path: split for image, split in result.assigned}


def _linking():
    """Two copies without a split, one in the group of the training image, the other in that of the test image."""
    return [_image(NEAR_TRAIN, None, "patient 1", "same"), _image(NEAR_TEST, None, "patient 2", "same")]


def test_copies_without_a_split_in_groups_of_two_splits_are_left_out_of_the_earlier_one():
    result, splits = _assigned(_fixed() + _linking())
    assert all(splits[image.record.path] == image.record.split for image in _fixed())
    assert splits[NEAR_TEST] == "test"
    reason = "copy of an image in the test split, in a group of the train split"
    assert [(each.path, each.reason) for each in result.copies] == [(NEAR_TRAIN, reason)]
    assert result.notes[0].startswith("1 image(s) without a split have the pixels of images in another split than")


def test_an_image_in_a_group_of_the_test_split_is_left_out_if_a_training_image_has_its_pixels():
    images = [*_fixed(), _image(NEAR_TEST, None, "patient 2", "a/train0.png")]
    result, splits = _assigned(images)
    assert all(splits[image.record.path] == image.record.split for image in _fixed())
    reason = "copy of an image in the train split, in a group of the test split"
    assert [(each.path, each.reason) for each in result.copies] == [(NEAR_TEST, reason)]


def test_a_group_without_a_split_connects_no_splits():
    chain = [_image("a/x.png", None, "patient 3", "same"), _image("a/y.png", None, "patient 3", "a/train0.png")]
    result, splits = _assigned([*_fixed(), _image(NEAR_TEST, None, "patient 2", "same"), *chain])
    assert all(splits[image.record.path] == image.record.split for image in _fixed())
    assert (splits[NEAR_TEST], splits["a/y.png"]) == ("test", "train")
    assert [(each.path, each.reason) for each in result.copies] == [("a/x.png", "copy of an image in the test split")]


def test_copies_that_are_kept_connect_no_splits():
    result, splits = _assigned(_fixed() + _linking(), copies="keep")
    assert all(splits[image.record.path] == image.record.split for image in _fixed())
    assert (splits[NEAR_TRAIN], splits[NEAR_TEST]) == ("train", "test")
    assert not result.copies
    assert "1 image(s) without a split" in result.notes[0]
    assert "remain" in result.notes[0]


def test_copies_and_groups_without_a_conflict_stay_together():
    images = [*_fixed(), _image("a/x.png", None, "patient 2", "same"), _image("a/y.png", None, None, "same"),
              _image("a/z.png", None, None, "a/train0.png")]  # fmt: skip
    result, splits = _assigned(images)
    assert (splits["a/x.png"], splits["a/y.png"], splits["a/z.png"]) == ("test", "test", "train")
    assert not result.copies
    assert not result.notes


@pytest.mark.parametrize("copies", ["leave_out", "keep"])
@pytest.mark.parametrize(
    ("kept", "dropped"),
    [(("train", None), ("test", None)), ((None, None), ("test", None)), (("train", None), (None, "patient 2")),
     ((None, "patient 1"), (None, "patient 2")), (("test", None), ("train", None))],
)  # fmt: skip
def test_a_dropped_copy_takes_no_image_with_it(kept, dropped, copies):
    images = [_image("a/kept.png", *kept, "same"), _image("a/dropped.png", *dropped, "same", is_dropped=True)]
    result, splits = _assigned([*_fixed(), *images], copies=copies)
    assert splits["a/kept.png"] == (kept[0] or "train")
    assert not result.copies
    assert not result.notes


@pytest.mark.parametrize("copies", ["leave_out", "keep"])
def test_no_image_with_a_split_moves_and_no_unit_is_divided_whatever_connects_them(copies):
    rng = np.random.default_rng(0)
    for _ in range(300):
        group_split = {f"g{k}": rng.choice([*SPLITS, ""]) for k in range(5)}
        images = _fixed()
        for i in range(int(rng.integers(4, 16))):
            group = str(rng.choice([*group_split, ""])) or None
            split = group_split.get(group, rng.choice([*SPLITS, ""])) if rng.random() < 0.4 else ""
            pixels = str(rng.choice(["p", "q", "r", "a/test0.png", "a/train0.png", f"own {i}"]))
            images.append(_image(f"a/{i}.png", str(split) or None, group, pixels, bool(rng.random() < 0.2)))
        result, splits = _assigned(images, copies=copies)
        dropped = {image.record.path for image in images if image.is_dropped}
        left_out = {each.path for each in result.copies}
        assert splits.keys() | left_out | dropped == {image.record.path for image in images}
        assert not left_out & (splits.keys() | dropped)
        used = {image.checked.sha256 for image, _ in result.assigned if not image.is_dropped}
        assert {image.checked.sha256 for image in images if not image.is_dropped} == used
        by_group, by_pixels = {}, {}
        for image, split in result.assigned:
            assert image.record.split in (None, split)
            by_group.setdefault(image.record.group, set()).add(split)
            by_pixels.setdefault(image.checked.sha256, set()).add(split)
        by_group.pop(None)
        assert all(len(names) == 1 for names in by_group.values())
        assert copies == "keep" or all(len(names) == 1 for names in by_pixels.values())


def test_near_duplicates_without_a_split_join_no_groups_of_two_splits():
    images = [*_fixed(), _image(NEAR_TRAIN, None, "patient 1"), _image(NEAR_TEST, None, "patient 2")]
    cluster = np.full(len(images), -1)
    cluster[-2:] = 0
    near = NearDuplicates(cluster)
    groups = [image.record.group for image in grouped(images, near)]
    assert groups[-2:] == ["patient 1", "patient 2"]
    _, splits = _assigned(grouped(images, near))
    assert (splits[NEAR_TRAIN], splits[NEAR_TEST]) == ("train", "test")
