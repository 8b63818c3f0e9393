"""Near-duplicates are found in each form, nothing else is, and each mode of data.near_duplicates does what it says."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from udc_model.config import DataParams, Params
from udc_model.data.assignment import UsableImage
from udc_model.data.packed import PackedDataset
from udc_model.data.quality.alignment import unexplained_share
from udc_model.data.quality.fingerprints import ORIENTATIONS, all_orientations, find_candidates, fingerprints, oriented
from udc_model.data.quality.near_duplicates import NearDuplicates, find_near_duplicates
from udc_model.data.quality.units import apply_near_duplicates
from udc_model.data.scratch import Checked
from udc_model.data.sources import ImageRecord
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare


class Thumbnails:
    """Thumbnails in memory, as `StoredTraits` has them in a file."""

    def __init__(self, images):
        self.array = np.stack([_thumbnail(image) for image in images])

    def thumbnails(self, indices):
        return self.array[indices]


def _thumbnail(image):
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))


def _clusters(images, digests=None):
    found = find_near_duplicates(Thumbnails(images), digests or [str(i) for i in range(len(images))])
    return [images.tolist() for images in found.clusters]


def _reencoded(image, quality=40):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "version",
    [
        _reencoded,
        lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
        lambda image: image.crop((3, 1, 94, 92)),
        ImageOps.mirror,
        ImageOps.flip,
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: ImageOps.mirror(image).transpose(Image.Transpose.ROTATE_270),
        lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    ],
    ids=["re-encoded", "resized", "cropped", "mirrored", "flipped", "turned", "mirrored and turned", "brighter"],
)
def test_versions_are_found_and_nothing_else(photograph, version):
    images = [photograph(i) for i in range(60)]
    assert _clusters([*images, *map(version, images[10:15])]) == [[10 + k, 60 + k] for k in range(5)]


def test_cluster_has_all_versions_and_copies(photograph):
    images = [photograph(i) for i in range(40)]
    images += [_reencoded(images[3]), ImageOps.mirror(images[3]), images[3], images[5]]
    digests = [str(i) for i in range(42)] + ["3", "5"]
    assert _clusters(images, digests) == [[3, 40, 41, 42]]  # copies alone are no near-duplicates


def test_blank_images_are_no_near_duplicates(photograph):
    blank = [Image.new("RGB", (64, 64), (level, level, level)) for level in (0, 128, 200, 255)]
    assert _clusters([*(photograph(i) for i in range(20)), *blank]) == []
    assert _clusters(blank) == []
    assert _clusters(blank[:1]) == []


def test_digits_have_no_near_duplicates():
    from sklearn.datasets import load_digits

    pixels = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert _clusters([Image.fromarray(each) for each in pixels]) == []


def test_orientations_of_fingerprints_are_those_of_images(photograph):
    thumbnails = np.stack([_thumbnail(photograph(0))] * len(ORIENTATIONS))
    turned = fingerprints(oriented(thumbnails, np.arange(len(ORIENTATIONS))))
    assert all_orientations(fingerprints(thumbnails[:1]))[:, 0] == pytest.approx(turned, abs=1e-5)


def test_index_finds_planted_pairs_of_many_and_compares_few(rng):
    n, copies = 5000, 50
    prints = rng.normal(size=(n, 6, 6)).astype(np.float32)
    prints[-copies:] = prints[:copies] + 0.05 * rng.normal(size=(copies, 6, 6))
    prints[:, 0, 0] = 0
    prints /= np.linalg.norm(prints, axis=(1, 2), keepdims=True)
    found = find_candidates(prints, 0.3)
    assert np.column_stack([found.first, found.second]).tolist() == [[k, n - copies + k] for k in range(copies)]


def test_share_is_small_after_shift_and_tone_and_large_for_another_image(photograph):
    image = photograph(1)
    first, shifted = _thumbnail(image), _thumbnail(image.crop((4, 0, 96, 92)))
    tone = (255 * (first / 255.0) ** 1.2).astype(np.uint8)
    shares = unexplained_share(np.stack([first] * 3), np.stack([shifted, tone, _thumbnail(photograph(2))]))
    assert shares[0] < 0.02
    assert shares[1] < 0.001
    assert shares[2] > 0.5


def _by_path(dataset, column):
    return dataset.manifest.set_index("path")[column].to_dict()


@pytest.fixture
def shots(tmp_path, photograph):
    """Two classes of 24 objects with 2 shots each, and one more shot of the first ant, labelled bee."""
    root = tmp_path / "shots"
    for k, label in enumerate(("ant", "bee")):
        (root / label).mkdir(parents=True)
        for i in range(24):
            image = photograph(1000 * k + i)
            image.save(root / label / f"{i:02d}x.png")
            _reencoded(image).save(root / label / f"{i:02d}y.png")
    ImageOps.mirror(photograph(0)).save(root / "bee" / "wrong.png")
    return root


def test_report_counts_clusters_across_splits_first_and_changes_no_split(shots, prepared):
    dataset = prepared(shots, image_size=32)
    record, splits = dataset.info["near_duplicates"], _by_path(dataset, "split")
    pairs = [(f"{label}/{i:02d}x.png", f"{label}/{i:02d}y.png") for label in ("ant", "bee") for i in range(24)]
    sets = [{splits[a], splits[b]} | ({splits["bee/wrong.png"]} if a == "ant/00x.png" else set()) for a, b in pairs]
    assert record["clusters"] == 48
    assert record["images"] == 97
    assert record["clusters_across_splits"] == sum(len(each) > 1 for each in sets) > 10
    assert record["conflicting_labels"] == [[["ant/00x.png", "ant"], ["ant/00y.png", "ant"], ["bee/wrong.png", "bee"]]]
    crossing, leaked = record["clusters_across_splits"], record["test_images_like_training_images"]
    n_test = len(dataset.split("test"))
    assert dataset.notes[0] == (
        f"{crossing} of 48 cluster(s) of near-duplicates cross splits: {leaked} of {n_test} test image(s) show the "
        "same as a training image, so the result looks better than it is (data.near_duplicates: group keeps each "
        "cluster in one split)"
    )
    assert dataset.notes[1].startswith("1 cluster(s) of near-duplicates have different labels")
    assert set(dataset.manifest["group"]) == {""}


def test_group_keeps_clusters_in_one_split_and_names_them(shots, prepared):
    dataset = prepared(shots, image_size=32, near_duplicates="group")
    manifest = dataset.manifest
    assert manifest["group"].nunique() == 48
    assert manifest.groupby("group")["split"].nunique().max() == 1
    of_wrong = manifest[manifest["group"] == "near-duplicates of ant/00x.png"]["path"]
    assert of_wrong.tolist() == ["ant/00x.png", "ant/00y.png", "bee/wrong.png"]
    assert dataset.info["near_duplicates"]["clusters_across_splits"] == 0
    assert dataset.notes[0] == "97 near-duplicates are 48 group(s)"


def test_group_joins_the_groups_of_the_user(shots, prepared):
    """Each shot x is in the group of its number, each y in one of its own; a cluster joins them."""
    dataset = prepared(shots, image_size=32, near_duplicates="group", group=r"^(\d\dx|\d\dy|wrong)")
    groups = _by_path(dataset, "group")
    assert groups["ant/05x.png"] == groups["ant/05y.png"] == groups["bee/05x.png"] == "05x and 1 more"
    assert groups["ant/00x.png"] == groups["bee/wrong.png"] == "00x and 2 more"


def test_drop_keeps_the_largest_image_of_each_cluster(shots, prepared, photograph):
    photograph(3, side=128).save(shots / "ant" / "03z.png")  # the same object, with more pixels
    dataset = prepared(shots, image_size=32, near_duplicates="drop")
    paths = set(dataset.manifest["path"])
    assert len(paths) == 48
    assert {"ant/03z.png", "ant/04x.png"} <= paths
    left_out = (dataset.folder / "left_out.csv").read_text()
    assert "ant/03x.png,near-duplicate of another image\n" in left_out
    assert dataset.notes[0] == "50 image(s) are left out as near-duplicates of others"


def test_drop_keeps_no_image_that_a_correction_drops():
    large, small = (
        UsableImage(ImageRecord(f"a/{side}.png", "a"), Checked(side, side, str(side), 0), "a", side == 200)
        for side in (200, 100)
    )
    reduced = apply_near_duplicates([large, small], NearDuplicates(np.array([0, 0])), "drop")
    assert reduced.usable == [small]
    assert reduced.dropped == []  # the corrections report the other one


def test_prescribed_test_images_are_never_changed(tmp_path, photograph, prepared):
    root = tmp_path / "splits"
    for k, label in enumerate(("ant", "bee")):
        for split in ("train", "val", "test"):
            (root / split / label).mkdir(parents=True)
        for i in range(30):
            image = photograph(1000 * k + i)
            split = ("train", "train", "val", "test")[i % 4]
            image.save(root / split / label / f"{i:02d}.png")
            if i < 4:
                _reencoded(image).save(root / "train" / label / f"{i:02d}y.png")
                _reencoded(image, 60).save(root / "test" / label / f"{i:02d}z.png")
    n_test = len(list((root / "test").rglob("*.png")))
    for mode in ("report", "group", "drop"):
        dataset = prepared(root, image_size=32, near_duplicates=mode)
        assert len(dataset.split("test")) == n_test
        n_crossing = 0 if mode == "drop" else 8
        assert dataset.info["near_duplicates"]["clusters_across_splits"] == n_crossing
        assert sum(path.startswith("train/") and path.endswith("y.png") for path in dataset.manifest["path"]) == (
            0 if mode == "drop" else 8
        )


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="near_duplicates"):
        DataParams(near_duplicates="merge")


def test_too_few_groups_are_an_error_that_counts_them(tmp_path, photograph):
    root = tmp_path / "few"
    for k, label in enumerate(("ant", "bee")):
        (root / label).mkdir(parents=True)
        for i in range(12):
            photograph(1000 * k + i % 3).crop((i // 3, 0, 92 + i // 3, 92)).save(root / label / f"{i}.png")
    params = Params(data=DataParams(source="folder", path=str(root), image_size=32, near_duplicates="group"))
    with pytest.raises(UdcError, match=r"ant: 12 image\(s\) in 3 group\(s\), none for"):
        prepare(params, Workspace(tmp_path / "out"))


def test_outputs_do_not_depend_on_workers(shots, tmp_path, monkeypatch):
    from udc_model.data import workers

    folders = []
    for least in (1, 10_000):
        monkeypatch.setattr(workers, "_MIN_ITEMS", least)
        workspace = Workspace(tmp_path / str(least))
        prepare(Params(data=DataParams(source="folder", path=str(shots), image_size=32)), workspace)
        folders.append(PackedDataset.open(workspace.prepared).folder)
    for name in ("data_report.html", "dataset.json", "manifest.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert not (folders[0] / "scratch.traits").exists()
