"""The page about the data, udc inspect, outliers and proposals of groups say what is there, and nothing else."""

import html
import re

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from udc_model.cli import main
from udc_model.data.quality.group_names import propose_group


def _page(dataset):
    return html.unescape((dataset.folder / "data_report.html").read_text(encoding="utf-8"))


def test_page_of_ordinary_images_says_that_nothing_is_suspicious(photographs, prepared):
    page = _page(prepared(photographs(20), image_size=32))
    assert "Images of photographs: 40 of 2 classes" in page
    assert "Nothing suspicious" in page
    assert "<h3>ant <span" in page
    assert not re.search(r"<script|https?://|href=", page)
    assert page.count("<img") == 2  # a contact sheet of each class


def test_page_names_and_shows_what_is_there(tmp_path, photographs, photograph, prepared):
    root = photographs(40)
    (root / "ant" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    (root / "notes.txt").write_text("text")
    photograph(500, side=400).save(root / "ant" / "large.jpg")
    ImageEnhance.Brightness(photograph(501)).enhance(0.1).save(root / "bee" / "dark.jpg")
    photograph(502).resize((40, 200)).save(root / "bee" / "narrow.jpg")
    photograph(3).resize((80, 80)).save(root / "bee" / "copy <b>.jpg")  # of ant003.jpg
    dataset = prepared(root, image_size=32, on_bad_image="skip")
    page = _page(dataset)
    first = re.search(r"<ol>(.*?)</ol>", page, re.DOTALL)[1]
    sentences = re.findall(r"<li>(.*?)</li>", first)
    assert sentences[0].startswith("2 of 84 images are near-duplicates in 1 cluster(s)")
    assert sentences[1].startswith("1 set(s) of copies or near-duplicates have different labels")
    assert sentences[2] == "1 image(s) cannot be used."
    raw = (dataset.folder / "data_report.html").read_text(encoding="utf-8")
    assert "bee/copy &lt;b&gt;.jpg" in raw
    assert "<b>" not in raw
    for expected in ("400 x 400", "ant/large.jpg", "bee/dark.jpg", "40 x 200", "ant/broken.jpg", "notes.txt"):
        assert expected in page


def test_page_is_bounded(tmp_path, photograph, prepared):
    for k in range(60):
        (tmp_path / "many" / f"class{k:02d}").mkdir(parents=True)
        for i in range(4):
            photograph(10 * k + i, side=48).save(tmp_path / "many" / f"class{k:02d}" / f"{i}.png")
    page = _page(prepared(tmp_path / "many", image_size=32))
    assert page.count("Images of the class") == 40
    assert "20 more classes are not shown" in page


def test_inspect_prints_findings_and_writes_the_page(tmp_path, photographs, photograph, capsys):
    root = photographs(20)
    photograph(3).resize((80, 80)).save(root / "ant" / "copy.jpg")
    assert main(["inspect", str(root), "--report", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert "found in the images:\n  1. 2 of 41 images are near-duplicates in 1 cluster(s)" in printed
    assert "ant/ant003.jpg (ant) = ant/copy.jpg (ant)" in (tmp_path / "page.html").read_text()
    assert main(["inspect", str(root), "--report", str(tmp_path / "missing" / "page.html")]) == 1


def test_inspect_of_ordinary_images_finds_nothing(photographs, capsys):
    assert main(["inspect", str(photographs(20))]) == 0
    assert capsys.readouterr().out.endswith("found in the images: nothing suspicious\n")


class Thumbnails:
    def __init__(self, images):
        self.array = np.stack([np.asarray(image.convert("L").resize((32, 32))) for image in images])

    def thumbnails(self, indices):
        return self.array[indices]


def _shots(photograph, name, objects=40, shots=4):
    """Shots of objects: paths, labels, thumbnails."""
    paths, images = [], []
    for k in range(objects):
        for shot in range(shots):
            left = 4 * shot
            paths.append(f"ant/{name(k, shot)}")
            images.append(photograph(k, side=128).crop((left, 0, left + 110, 110)))
    return paths, ["ant"] * len(paths), Thumbnails(images)


@pytest.mark.parametrize(
    ("name", "example"),
    [
        (lambda k, shot: f"tile{k:03d}_{shot}.jpg", "tile007"),
        (lambda k, shot: f"tile{k:03d} ({shot}).jpg", "tile007"),
        (lambda k, shot: f"spider{k}{'abcd'[shot]}.jpg", "spider7"),
        (lambda k, shot: f"p{k:02d}-{['left', 'right', 'top', 'rear'][shot]}.png", "p07"),
    ],
)
def test_group_in_file_names_is_proposed(photograph, name, example):
    paths, labels, thumbnails = _shots(photograph, name)
    proposal = propose_group(paths, labels, thumbnails)
    assert (proposal.groups, proposal.images) == (40, 160)
    assert re.search(proposal.pattern, paths[28].split("/")[1])[1] == example
    assert proposal.alike > 0.95


@pytest.mark.parametrize(
    "name", [lambda k, shot: f"IMG_{4 * k + shot:04d}.jpg", lambda k, shot: f"ant{4 * k + shot}.jpg"]
)
def test_plain_numbers_are_no_groups(photograph, name):
    assert propose_group(*_shots(photograph, name)) is None


def test_names_without_likeness_are_no_groups(photograph):
    paths = [f"ant/batch{i % 40:02d}_{i // 40}.jpg" for i in range(160)]
    assert propose_group(paths, ["ant"] * 160, Thumbnails([photograph(i) for i in range(160)])) is None


def test_proposal_is_made_by_prepare_and_holds(tmp_path, photograph, prepared):
    for k, label in enumerate(("ant", "bee")):
        (tmp_path / "shots" / label).mkdir(parents=True)
        for i in range(20):
            for shot in range(4):
                image = photograph(1000 * k + i, side=128).crop((5 * shot, 0, 5 * shot + 100, 100))
                image.save(tmp_path / "shots" / label / f"{label}{i:02d}_{shot}.png")
    dataset = prepared(tmp_path / "shots", image_size=32)
    (note,) = [note for note in dataset.notes if note.startswith("a random split may leak")]
    assert "form 40 groups with 160 images" in note
    pattern = re.search(r"set data.group: '(.*)'$", note)[1]
    assert dataset.info["group_proposal"] == pattern
    again = prepared(tmp_path / "shots", image_size=32, group=pattern)
    assert again.manifest["group"].nunique() == 40
    assert not [note for note in again.notes if "may leak" in note]
    assert "group_proposal" not in again.info
    assert again.info["near_duplicates"]["clusters_across_splits"] == 0


def test_outliers_are_few_or_none(tmp_path, photograph, prepared):
    """A third of all images that is twice as large is no outlier."""
    for k, label in enumerate(("ant", "bee")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(30):
            side = 192 if i % 3 == 0 else 96
            photograph(1000 * k + i).resize((side, side)).save(tmp_path / "photos" / label / f"{i}.png")
    page = _page(prepared(tmp_path / "photos", image_size=32))
    assert "Outliers" not in page


def test_grey_images_are_shown(tmp_path, photograph, prepared):
    for k, label in enumerate(("ant", "bee")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.asarray(photograph(1000 * k + i))[..., 0]).save(tmp_path / "photos" / label / f"{i}.png")
    assert "Nothing suspicious" in _page(prepared(tmp_path / "photos", image_size=32))
