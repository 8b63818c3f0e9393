"""Planted shortcuts are named with their class, in each trait; without one, nothing is named."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from udc_model.data.quality.traits import FileFacts, measure


def _exif(make, model, date=None):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = make, model
    if date:
        exif[ExifTags.Base.DateTime] = date
    return exif


def _framed(image):
    pixels = np.array(image)
    pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = 30, 30, 30, 30
    return Image.fromarray(pixels)


PLANTED = {
    "file format and JPEG quality": lambda image, k, path: image.save(path, quality=(90, 60)[k]),
    "file size": lambda image, k, path: image.save(path, quality=90, comment=b"x" * (1 + 9000 * k)),
    "dimensions": lambda image, k, path: image.resize((96, 96 + 8 * k)).save(path, quality=90),
    "EXIF camera": lambda image, k, path: image.save(path, quality=90, exif=_exif("Acme", ("One", "Two")[k])),
    "EXIF date": lambda image, k, path: image.save(
        path, quality=90, exif=_exif("Acme", "One", f"202{k}:05:01 10:00:00")
    ),
    "border pixels": lambda image, k, path: (_framed(image) if k else image).save(path, quality=90),
    "mean colour": lambda image, k, path: Image.eval(image, lambda value: value // (1 + 2 * k)).save(path, quality=90),
}


@pytest.mark.parametrize("trait", PLANTED)
def test_planted_shortcut_is_named(tmp_path, photograph, prepared, trait):
    for k, label in enumerate(("ant", "bee")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(110 if trait in ("border pixels", "mean colour") else 60):
            PLANTED[trait](photograph(1000 * k + i), k, tmp_path / "photos" / label / f"{i}.jpg")
    dataset = prepared(tmp_path / "photos", image_size=32)
    named = {(each["trait"], each["label"]) for each in dataset.info["shortcuts"]}
    assert {(trait, "ant"), (trait, "bee")} <= named
    strongest = [each for each in dataset.info["shortcuts"] if each["trait"] == trait]
    assert all(each["recognised"] > 0.9 and each["taken"] < 0.1 and each["least"] < each["recognised"]
               for each in strongest)  # fmt: skip
    (note,) = [note for note in dataset.notes if note.startswith("possible shortcut")]
    assert "2 of 2 classes can be predicted from the " in note
    assert trait in note


def test_folder_of_origin_is_named(tmp_path, photograph, prepared):
    for k, label in enumerate(("ant", "bee")):
        for i in range(60):
            folder = tmp_path / "photos" / label / f"site{k}"
            folder.mkdir(parents=True, exist_ok=True)
            photograph(1000 * k + i).save(folder / f"{i}.png")
    dataset = prepared(tmp_path / "photos", image_size=32)
    assert {each["trait"] for each in dataset.info["shortcuts"]} == {"folder"}


def test_nothing_is_named_without_a_shortcut(photographs, prepared):
    dataset = prepared(photographs(60), image_size=32)
    assert dataset.info["shortcuts"] == []
    assert not [note for note in dataset.notes if "shortcut" in note]


def test_few_images_are_not_tested(tmp_path, photograph, prepared):
    """Of 19 images in a class, none is enough to say that a perfect split of file sizes is no accident."""
    for k, label in enumerate(("ant", "bee")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(19):
            PLANTED["EXIF camera"](photograph(1000 * k + i), k, tmp_path / "photos" / label / f"{i}.jpg")
    assert prepared(tmp_path / "photos", image_size=32).info["shortcuts"] == []


def test_facts_of_a_file(tmp_path, photograph):
    path = tmp_path / "a.jpg"
    photograph(0).save(path, quality=90, exif=_exif("Acme ", "Zoom\0", "2024:05:31 12:00:00"))
    with Image.open(path) as image:
        facts = FileFacts.of(image)
        mean = np.mean([value for table in image.quantization.values() for value in table])
    assert (facts.form, facts.camera, facts.date) == ("JPEG", "Acme Zoom", "2024:05:31 12:00:00")
    assert facts.quantisation == pytest.approx(mean)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage" * 50])
def test_damaged_metadata_leaves_the_image_usable(tmp_path, photograph, prepared, exif):
    for k, label in enumerate(("ant", "bee")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(8):
            image = photograph(1000 * k + i)
            image.save(tmp_path / "photos" / label / f"{i}.jpg", **({"exif": exif} if i == 0 else {}))
    assert prepared(tmp_path / "photos", image_size=32).info["images"] == 16


def test_a_long_camera_name_is_bounded(tmp_path, photograph):
    path = tmp_path / "a.jpg"
    photograph(0).save(path, exif=_exif("é" * 20_000, "x"))
    with Image.open(path) as image:
        facts = FileFacts.of(image)
    image, pixels = photograph(0), np.asarray(photograph(0))
    assert len(measure(pixels, image, facts, 1)) == len(measure(pixels, image, FileFacts(), 1))
