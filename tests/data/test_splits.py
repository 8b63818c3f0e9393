"""Tests of splits: stratified, without divided groups, independent of the order in which files are listed."""

import numpy as np
import pytest
from sklearn.utils import shuffle

from udc_model.config import SPLITS, SplitShares
from udc_model.data.splits import assign_splits, connected_components

SHARES = SplitShares()


def test_components_connect_chains_and_are_numbered_by_first_appearance():
    groups = ["a", "a", None, "b", None, "c"]
    hashes = ["1", "2", "2", "3", "4", "3"]
    assert connected_components(6, [groups, hashes]).tolist() == [0, 0, 0, 1, 2, 1]
    assert connected_components(4, [["x", "y", "x", None], ["2", None, None, "1"]]).tolist() == [0, 1, 0, 2]
    assert connected_components(3, []).tolist() == [0, 1, 2]


@pytest.mark.parametrize("n", [40, 400, 4000])
def test_each_class_has_its_shares_to_within_two_images(n, rng):
    labels = rng.choice(3, n, p=[0.7, 0.2, 0.1])
    splits = assign_splits(labels, np.arange(n), [None] * n, SHARES, seed=1)
    for k in range(3):
        for s, name in enumerate(SPLITS):
            expected = getattr(SHARES, name) * (labels == k).sum()
            assert abs(((labels == k) & (splits == s)).sum() - expected) < 2


def test_groups_are_not_divided_and_classes_are_stratified(rng):
    groups = rng.integers(0, 120, 3000)
    labels = rng.choice(3, 3000, p=[0.6, 0.25, 0.15])
    components = connected_components(3000, [[str(g) for g in groups]])
    splits = assign_splits(labels, components, [None] * 3000, SHARES, seed=1)
    for group in range(120):
        assert len(set(splits[groups == group])) == 1
    for k in range(3):
        for s, name in enumerate(SPLITS):
            share = ((labels == k) & (splits == s)).sum() / (labels == k).sum()
            assert abs(share - getattr(SHARES, name)) < 0.04


def test_splits_depend_on_the_seed_and_are_repeatable(rng):
    labels = rng.integers(0, 3, 200)
    first, repeated, reseeded = (
        assign_splits(labels, np.arange(200), [None] * 200, SHARES, seed) for seed in (1, 1, 2)
    )
    assert (first == repeated).all()
    assert (first != reseeded).any()


def test_fixed_splits_are_unchanged_and_their_components_follow():
    labels = np.array([0, 0, 0, 0, 0])
    fixed = ["train", "validation", None, "test", None]
    splits = assign_splits(labels, np.array([0, 1, 1, 2, 3]), fixed, SHARES, seed=0)
    names = [SPLITS[k] for k in splits]
    assert names[:4] == ["train", "validation", "validation", "test"]
    assert names[4] == "calibration"  # the only split that is not fixed


def test_a_component_of_two_splits_is_refused():
    with pytest.raises(ValueError, match="a component has several splits"):
        assign_splits(np.zeros(2, dtype=int), np.zeros(2, dtype=int), ["test", "train"], SHARES, seed=0)


def test_source_does_not_depend_on_the_listing_order(shapes_folder, monkeypatch):
    from pathlib import Path

    from udc_model.config import DataParams
    from udc_model.data.sources import open_source

    params = DataParams(source="folder", path=str(shapes_folder))
    ordered = open_source(params, shapes_folder / "unpacked")
    iterdir, rglob = Path.iterdir, Path.rglob
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(shuffle(list(iterdir(self)), random_state=1)))
    monkeypatch.setattr(Path, "rglob", lambda self, p: iter(shuffle(list(rglob(self, p)), random_state=2)))
    shuffled = open_source(params, shapes_folder / "unpacked")
    assert ordered.records == shuffled.records
    assert ordered.classes == shuffled.classes
