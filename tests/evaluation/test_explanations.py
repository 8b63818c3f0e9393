"""Which images are explained, and what the report makes of explanations."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from udc_model.errors import UdcError
from udc_model.evaluation.explanations import Explanations, explained_classes, explained_rows
from udc_model.evaluation.report_explanations import explained_sections, render_page

CLASSES = ["cat", "<dog>", "owl"]


@pytest.fixture
def explanations(rng):
    """Of rows 0 and 4, for two classes each; there is no reference of class 2."""
    classes = np.array([[1, 0], [0, 2]])
    return Explanations(np.array([0, 4]), classes, rng.integers(0, 256, (2, 2, 4, 4), dtype=np.uint8),
                        np.array([[5, 3], [2, -1]]), 8)  # fmt: skip


@pytest.fixture
def images(rng):
    """Six prepared images of 10 pixels, of which the network sees 8."""
    return rng.integers(0, 256, (6, 10, 10, 3), dtype=np.uint8)


def test_a_small_split_is_explained_completely(rng):
    rows = explained_rows(rng.normal(0, 1, (20, 3)), rng.integers(0, 3, 20), rng.random(20), 20)
    assert rows.tolist() == list(range(20))


def test_of_a_large_split_those_are_explained_that_a_report_is_likely_to_show(rng):
    """The least familiar, the least certain, and of each class, also a rare one, those of least probable label."""
    labels = np.concatenate([np.zeros(2000, int), np.ones(500, int), [2] * 6])
    logits, distances = rng.normal(0, 1, (2506, 3)) + 2 * np.eye(3)[labels], rng.random(2506)
    rows = set(explained_rows(logits, labels, distances, 300).tolist())
    p = softmax(logits, axis=1)
    assert len(rows) == 300
    assert set(np.argsort(-distances)[:12]) <= rows
    assert set(np.argsort(p.max(axis=1))[:60]) <= rows
    for label, at_least in ((0, 60), (1, 60), (2, 6)):
        of_class = np.flatnonzero(labels == label)
        assert set(of_class[np.argsort(p[of_class, label])][:at_least]) <= rows


def test_images_are_explained_for_their_most_probable_classes_and_their_label():
    logits = np.array([[0.0, 3, 1, 2], [4, 3, 2, 1]])
    assert explained_classes(logits, np.array([[0], [1]]), 3).tolist() == [[1, 0, 3], [0, 1, 2]]
    assert explained_classes(logits, np.array([[1], [3]]), 2).tolist() == [[1, 3], [0, 3]]
    assert explained_classes(logits, np.array([[2, 0], [3, 0]]), 2).tolist() == [[1, 2, 0], [0, 3, 1]]
    assert explained_classes(logits, np.array([[2], [3]]), 8).tolist() == [[1, 2, 3, 0], [0, 3, 1, 2]]


def test_explanations_are_found_by_row_and_class(explanations):
    assert explanations.place(4) == (1, 0)
    assert explanations.place(4, 2) == (1, 1)
    assert explanations.place(4, 1) is None
    assert explanations.place(3) is None


def test_files_have_the_same_explanations_and_damage_is_an_error(explanations, tmp_path):
    path = tmp_path / "new" / "explanations.npz"
    with pytest.raises(FileNotFoundError):
        Explanations.load(path)
    explanations.save(path)
    loaded = Explanations.load(path)
    for name, value in vars(explanations).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    contents = path.read_bytes()
    path.write_bytes(contents[:-200])
    with pytest.raises(UdcError, match=r"explanations\.npz: cannot be read .*; delete it"):
        Explanations.load(path)
    path.write_bytes(b"")
    with pytest.raises(UdcError, match="cannot be read"):
        Explanations.load(path)


def test_sections_show_maps_and_similar_images_where_there_are_some(explanations, images, tmp_path):
    mistakes = pd.DataFrame({"path": ["a.png", "b.png"], "true": ["cat", "owl"], "decided": ["<dog>", "cat"],
                             "probability": [0.9, 0.8], "cost": [5.0, 1.0], "row": [0, 3]})  # fmt: skip
    mistakes.to_csv(tmp_path / "costliest_mistakes.csv", index=False)
    referred = pd.DataFrame({"path": ["c.png", "d.png"], "true": ["owl", "<dog>"], "decided": "refer",
                             "most_probable": ["cat", "<dog>"], "expected_cost": [0.5, 0.25],
                             "row": [4, 0]})  # fmt: skip
    referred.to_csv(tmp_path / "referred.csv", index=False)
    first, second = explained_sections(tmp_path, CLASSES, explanations, images, images)
    assert (first.title, first.unexplained, second.unexplained) == ("Costliest mistakes", 1, 0)
    captions = [[caption for caption, _ in each.pictures] for each in (*first.images, *second.images)]
    assert captions == [
        ["image", "for <dog>", "training image of <dog>", "training image of cat"], ["image"],
        ["image", "for cat", "training image of cat"],  # no reference is an owl
        ["image", "for <dog>", "training image of <dog>", "training image of cat"],  # true and next class
    ]  # fmt: skip
    assert [each.text for each in (*first.images, *second.images)] == [
        "cat decided <dog>, cost 5", "owl decided cat, cost 1",
        "owl decided refer; cat is most probable, expected cost 0.5",
        "<dog> decided refer; <dog> is most probable, expected cost 0.25",
    ]  # fmt: skip
    page = render_page("Title", [first, second], explanations.method)
    assert "1 of the 2 images has no map" in page
    assert "<code>udc explain</code> explains it" in page
    assert "<dog>" not in page
    assert page.count("<img") == 12
    assert 'src="http' not in page


def test_classes_whose_names_are_numbers_keep_their_names(explanations, images, tmp_path):
    row = {"path": ["1"], "true": ["007"], "decided": ["refer"], "most_probable": ["007"], "expected_cost": [0.5],
           "row": [0]}  # fmt: skip
    pd.DataFrame(row).to_csv(tmp_path / "referred.csv", index=False)
    (section,) = explained_sections(tmp_path, ["1.0", "007", "NA"], explanations, images, images)
    assert section.images[0].text == "007 decided refer; 007 is most probable, expected cost 0.5"


def test_kinds_without_images_are_left_out(explanations, images, tmp_path):
    columns = ["path", "true", "decided", "probability", "cost", "row"]
    pd.DataFrame(columns=columns).to_csv(tmp_path / "costliest_mistakes.csv", index=False)
    assert explained_sections(tmp_path, CLASSES, explanations, images, images) == []
