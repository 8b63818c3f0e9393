"""Splits: stratified, whole groups, the same whatever order the file system lists."""

import numpy as np
import pytest
from sklearn.utils import shuffle

from udc_model.config import SPLITS, SplitShares
from udc_model.data.splits import assign_splits, connected_components

SHARES = SplitShares()


def test_components_join_over_chains():
    groups = ["a", "a", None, "b", None, "c"]
    hashes = ["1", "2", "2", "3", "4", "3"]
    found = connected_components(6, [groups, hashes])
    assert found.tolist() == [0, 0, 0, 1, 2, 1]


@pytest.mark.parametrize("n", [40, 400, 4000])
def test_single_images_are_shared_out_to_within_two(n, rng):
    labels = rng.choice(3, n, p=[0.7, 0.2, 0.1])
    splits = assign_splits(labels, np.arange(n), [None] * n, SHARES, seed=1)
    for k in range(3):
        for s, name in enumerate(SPLITS):
            wanted = getattr(SHARES, name) * (labels == k).sum()
            assert abs(((labels == k) & (splits == s)).sum() - wanted) < 2


def test_groups_stay_whole_and_classes_balanced(rng):
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


def test_seed_matters_and_repeats(rng):
    labels = rng.integers(0, 3, 200)
    one, again, other = (assign_splits(labels, np.arange(200), [None] * 200, SHARES, seed) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_given_splits_are_left_and_copies_go_to_training():
    labels = np.array([0, 0, 0, 0, 0, 0])
    fixed = ["test", "train", "validation", None, "test", None]
    components = np.array([0, 0, 1, 1, 2, 3])
    splits = assign_splits(labels, components, fixed, SHARES, seed=0)
    names = [SPLITS[k] for k in splits]
    assert names[:5] == ["train", "train", "validation", "validation", "test"]
    assert names[5] == "calibration"  # the one split that was not given


def test_listing_order_does_not_matter(shapes_folder, monkeypatch):
    from pathlib import Path

    from udc_model.config import DataParams
    from udc_model.data.sources import open_source

    params = DataParams(source="folder", path=str(shapes_folder))
    straight = open_source(params)
    iterdir, rglob = Path.iterdir, Path.rglob
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(shuffle(list(iterdir(self)), random_state=1)))
    monkeypatch.setattr(Path, "rglob", lambda self, p: iter(shuffle(list(rglob(self, p)), random_state=2)))
    shuffled = open_source(params)
    assert straight.records == shuffled.records
    assert straight.classes == shuffled.classes
