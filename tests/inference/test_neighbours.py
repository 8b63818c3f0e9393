"""The most similar training images: against brute force, of a class, and from a file."""

import numpy as np
import pytest

from udc_model.errors import UdcError
from udc_model.inference.neighbours import TrainingFeatures, reference_rows


@pytest.fixture
def references(rng):
    """40 references of 4 classes, of two networks; class 3 has one."""
    labels = np.array([0, 1, 2] * 13 + [3])
    return TrainingFeatures(np.arange(40) * 7, labels, rng.gamma(1, 1, (40, 2, 6)).astype(np.float32))


def direction(values):
    return np.sign(values) * np.sqrt(np.abs(values) / np.abs(values).sum())


def brute_force(references, features, allowed):
    """Rows and distances to the allowed references (n,), the nearest first."""
    pairs = []
    for row, reference in zip(references.rows[allowed], references.features[allowed].astype(float), strict=True):
        distances = [np.linalg.norm(direction(reference[m]) - direction(features[m].astype(float))) for m in range(2)]
        pairs.append((np.mean(distances), row))
    return sorted(pairs)


def test_nearest_are_those_of_brute_force(references, rng):
    features = rng.normal(0, 1, (300, 2, 6)).astype(np.float32)  # more than one block
    rows, distances = references.nearest(features, 3)
    of_class = references.nearest(features, 2, np.arange(300) % 3)
    for i in range(300):
        expected = brute_force(references, features[i], np.ones(40, bool))
        assert rows[i].tolist() == [row for _, row in expected[:3]]
        np.testing.assert_allclose(distances[i], [distance for distance, _ in expected[:3]], atol=1e-6)
        expected = brute_force(references, features[i], references.labels == i % 3)
        assert of_class[0][i].tolist() == [row for _, row in expected[:2]]


def test_an_image_is_nearest_to_itself_and_missing_ones_are_marked(references):
    rows, distances = references.nearest(references.features)
    assert rows[:, 0].tolist() == references.rows.tolist()
    assert distances.max() < 1e-3
    rows, distances = references.nearest(references.features[:2], 3, 3)
    assert rows.tolist() == [[39 * 7, -1, -1]] * 2
    assert np.isinf(distances[:, 1:]).all()
    assert references.nearest(references.features[:1], 2, 4)[0].tolist() == [[-1, -1]]
    assert references.nearest(references.features[:1], 50)[0].shape == (1, 50)
    assert references.nearest(references.features[:0])[0].shape == (0, 1)


def test_files_have_the_same_features_and_damage_is_an_error(references, tmp_path):
    path = tmp_path / "a" / "features.npz"
    with pytest.raises(FileNotFoundError):
        TrainingFeatures.load(path)
    references.save(path)
    loaded = TrainingFeatures.load(path)
    for name in ("rows", "labels", "features"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(references, name))
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
    with pytest.raises(UdcError, match=r"features\.npz: cannot be read .*; delete it"):
        TrainingFeatures.load(path)
    np.savez(path, rows=np.arange(3), labels=np.arange(2), features=np.zeros((3, 1, 2), np.float32))
    with pytest.raises(UdcError, match="is damaged; delete it"):
        TrainingFeatures.load(path)


def test_references_are_evenly_spaced_and_more_of_rare_classes(rng):
    labels = np.zeros(50_000, np.int64)
    rare = rng.choice(50_000, 43, replace=False)
    labels[rare[:40]], labels[rare[40:]] = 1, 2
    rows = reference_rows(labels)
    assert rows[:1000].tolist() == np.linspace(0, 49_999, 1000).astype(int).tolist()
    assert len(set(rows)) == len(rows)
    assert (labels[rows] == 1).sum() >= 5
    assert (labels[rows] == 2).sum() == 3  # all of them
    assert len(rows) <= 1008


def test_few_images_are_all_references_and_many_classes_get_a_bounded_number():
    assert reference_rows(np.array([0, 1, 1])).tolist() == [0, 1, 2]
    many = np.arange(20_000) % 5_000
    rows = reference_rows(many)
    assert len(rows) == 1050
    assert len(np.unique(rows)) == 1050
