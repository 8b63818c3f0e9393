"""The review on the page: the queue, what each answer writes, and undo."""

import pytest
from pydantic import ValidationError

from udc_model.app.review import Answer, Review
from udc_model.data.corrections import Correction, read_corrections, record_correction
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.evaluation.label_quality import LABEL_QUALITY

CLASSES = ["bar", "dot", "stripe"]


@pytest.fixture
def review(workspace):
    review = Review(workspace, CLASSES, "Ada")
    review.load()
    return review


def _answer(item, action, value="", author="Ada", reason="seen"):
    return Answer(path=item["path"], action=action, value=value, author=author, reason=reason)


def test_the_queue_has_suspects_then_conflicts_then_mistakes_each_image_once(review, workspace):
    items = review.load()["items"]
    paths = [item["path"] for item in items]
    assert len(paths) == len(set(paths)) == 8
    assert [item["findings"][0][:10] for item in items[:5]] == ["Suspicious"] * 5
    costs = [float(item["findings"][0].rpartition(" ")[2].strip(".")) for item in items[:5]]
    assert costs == sorted(costs, reverse=True)
    copies = {item["path"]: item for item in items[5:7]}
    assert copies.keys() == {"bar/copy.png", "dot/g0_00.png"}
    assert copies["bar/copy.png"]["suggestion"] == "dot"
    assert copies["bar/copy.png"]["related"][0]["path"] == "dot/g0_00.png"
    assert items[7]["findings"] == ["Costly mistake in the test split: decided stripe, probability 0.9, cost 1."]
    manifest = PackedDataset.open(workspace.prepared).manifest.set_index("path")
    for item in items:
        row = manifest.loc[item["path"]]
        assert (item["sha256"], item["label"], tuple(item["place"])) == (row.sha256, row.label, (row.split, row.row))
        assert review.image(*item["place"]).startswith(b"\x89PNG")


def test_answers_write_their_lines_and_are_not_asked_again(review, workspace):
    first, second, third = review.load()["items"][:3]
    review.answer(_answer(first, "relabel", first["suggestion"]))
    review.answer(_answer(second, "keep"))
    review.answer(_answer(third, "drop", author=" Bob "))
    corrections = read_corrections(workspace.corrections)
    assert [(each.path, each.sha256, each.action, each.value, each.author, each.reason) for each in corrections] == [
        (first["path"], first["sha256"], "relabel", first["suggestion"], "Ada", "seen"),
        (second["path"], second["sha256"], "keep", "", "Ada", "seen"),
        (third["path"], third["sha256"], "drop", "", "Bob", "seen"),
    ]
    again = review.load()
    assert again["reviewed"] == 3
    assert {first["path"], second["path"], third["path"]}.isdisjoint(item["path"] for item in again["items"])


def test_images_corrected_by_their_pixels_are_not_asked_again(review, workspace):
    first = review.load()["items"][0]
    record_correction(workspace, Correction("", first["sha256"], "keep"))
    assert first["path"] not in {item["path"] for item in review.load()["items"]}


def test_undo_restores_line_by_line(review, workspace):
    first, second = review.load()["items"][:2]
    earlier = [Correction(second["path"], "", "group", "g")]
    record_correction(workspace, earlier[0])
    review.answer(_answer(first, "keep"))
    review.answer(_answer(first, "drop"))
    review.answer(_answer(second, "drop"))
    assert review.undo() == {"path": second["path"], "former": None}
    assert review.undo() == {"path": first["path"], "former": {"action": "keep", "value": ""}}
    assert [each.action for each in read_corrections(workspace.corrections)] == ["group", "keep"]
    review.undo()
    assert read_corrections(workspace.corrections) == earlier
    with pytest.raises(UdcError, match="nothing to undo"):
        review.undo()


def test_undo_leaves_a_line_that_was_changed_meanwhile(review, workspace):
    first, second = review.load()["items"][:2]
    review.answer(_answer(first, "keep"))
    review.answer(_answer(second, "keep"))
    theirs = Correction(second["path"], "", "drop", "", "Eve")
    record_correction(workspace, theirs)
    with pytest.raises(UdcError, match="was changed since"):
        review.undo()
    assert theirs in read_corrections(workspace.corrections)
    assert review.undo()["path"] == first["path"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "elsewhere.png", "action": "drop"}, "not in the queue"),
        ({"action": "relabel", "value": "cat"}, "'cat' is no class"),
        ({"action": "relabel"}, "no class"),
        ({"action": "keep", "author": " "}, "your name"),
        ({"action": "keep", "value": "dot"}, "has a value, which must be empty"),
    ],
)
def test_answers_that_are_not_allowed_write_nothing(review, workspace, values, message):
    item = review.load()["items"][0]
    before = workspace.corrections.read_bytes()
    with pytest.raises(UdcError, match=message):
        review.answer(Answer(**{"path": item["path"], "author": "Ada"} | values))
    with pytest.raises(UdcError, match="the label is"):
        review.answer(_answer(item, "relabel", item["label"]))
    assert workspace.corrections.read_bytes() == before


def test_text_that_is_no_unicode_is_refused():
    with pytest.raises(ValidationError):
        Answer(path="a", action="keep", author="\ud800")


@pytest.mark.parametrize(("split", "row"), [("test", 10**6), ("test", -1), ("nix", 0), ("../model", 0)])
def test_images_outside_of_the_prepared_data_are_refused(review, split, row):
    with pytest.raises(UdcError, match="no such image"):
        review.image(split, row)


def test_a_missing_table_is_one_sentence(review, workspace):
    table = workspace.evaluation / LABEL_QUALITY
    contents = table.read_bytes()
    table.unlink()
    with pytest.raises(UdcError, match="run evaluate first"):
        review.load()
    table.write_bytes(contents)


def test_the_command_names_the_folder_of_the_project(review, workspace, monkeypatch):
    assert review.command == f"cd {workspace.root} && dvc repro"
    monkeypatch.chdir(workspace.root)
    assert review.command == "dvc repro"
