"""Makes near-duplicates one group, or leaves out all but one, as ``data.near_duplicates`` says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from udc_model.config import SPLITS
from udc_model.data.assignment import UsableImage
from udc_model.data.quality.near_duplicates import NearDuplicates
from udc_model.data.sources import LeftOut
from udc_model.data.splits import connected_components, of_several_splits, with_splits_of_groups

DROPPED = "near-duplicate of another image"
_MOST_CONFLICTS = 100  # listed


def grouped(usable: Sequence[UsableImage], near: NearDuplicates) -> list[UsableImage]:
    """Give the images of a cluster one group, and with them the other images of their groups.

    Images for which the data prescribes different splits stay in different groups, also those that clusters and groups
    of images without a split would connect.

    Parameters
    ----------
    usable : N images.
    near : their clusters.
    """
    groups, fixed = [image.record.group for image in usable], [image.record.split for image in usable]
    keys: list[str | None] = [None] * len(usable)
    for images in near.clusters:
        name = f"near-duplicates of {usable[images[0]].record.path}"
        is_divided = len({fixed[i] for i in images} - {None}) > 1
        for i in images:
            keys[i] = f"{name} ({fixed[i] or 'no split'})" if is_divided else name
    components = connected_components(len(usable), [groups, keys])
    connects_splits = of_several_splits(components, fixed)
    if connects_splits.any():
        with_groups = with_splits_of_groups(groups, fixed)
        keys = [f"{key} of {split}" if key and several else key
                for key, split, several in zip(keys, with_groups, connects_splits, strict=True)]  # fmt: skip
        components = connected_components(len(usable), [groups, keys])
    names: dict[int, set[str]] = defaultdict(set)
    for image, component in zip(usable, components, strict=True):
        names[component] |= {image.record.group} if image.record.group else set()
    result = []
    for image, key, component in zip(usable, keys, components, strict=True):
        own = sorted(names[component])
        merged = f"{own[0]} and {len(own) - 1} more" if len(own) > 1 else own[0] if own else key
        result.append(replace(image, record=replace(image.record, group=merged)))
    return result


def without_near_duplicates(
    usable: Sequence[UsableImage], near: NearDuplicates
) -> tuple[list[UsableImage], list[LeftOut]]:
    """Keep one image of each cluster; returns the images that remain, and the others.

    Of those that no correction drops, the one of the latest split that the data prescribes remains, of those the one
    with most pixels, of those the first. An image that the data prescribes for ``test`` always remains.
    """
    dropped: set[int] = set()
    for images in near.clusters:
        kept = max(images, key=lambda i: (not usable[i].is_dropped, *_priority(usable[i]), -i))
        dropped |= {int(i) for i in images if i != kept and usable[i].record.split != "test"}
    return ([image for i, image in enumerate(usable) if i not in dropped],
            [LeftOut(usable[i].record.path, DROPPED) for i in sorted(dropped) if not usable[i].is_dropped])  # fmt: skip


def _priority(image: UsableImage) -> tuple[int, int]:
    split = image.record.split
    return (SPLITS.index(split) if split else -1, image.checked.width * image.checked.height)


@dataclass(frozen=True)
class Reduced:
    """The images that `apply_near_duplicates` returns, and those that it leaves out."""

    usable: list[UsableImage]
    dropped: list[LeftOut] = field(default_factory=list)


def apply_near_duplicates(usable: list[UsableImage], near: NearDuplicates, mode: str) -> Reduced:
    """Do with near-duplicates what ``data.near_duplicates`` says; ``report`` changes nothing."""
    if mode == "group":
        return Reduced(grouped(usable, near))
    return Reduced(*without_near_duplicates(usable, near)) if mode == "drop" else Reduced(usable)


def near_duplicates_record(
    usable: Sequence[UsableImage], near: NearDuplicates, splits: Sequence[str]
) -> dict[str, Any]:
    """What ``dataset.json`` says about clusters.

    Parameters
    ----------
    usable : the N images among which the clusters were found.
    splits : of the images; ``""`` for one that is left out.
    """
    paths, labels = [image.record.path for image in usable], [image.record.label for image in usable]
    clusters = near.clusters
    crossing = [images for images in clusters if len({splits[i] for i in images} - {""}) > 1]
    like_training = [images for images in crossing if any(splits[i] == "train" for i in images)]
    leaked = sum(splits[i] == "test" for images in like_training for i in images)
    conflicts = near.divided(labels)
    return {
        "clusters": len(clusters),
        "images": sum(map(len, clusters)),
        "clusters_across_splits": len(crossing),
        "test_images_like_training_images": leaked,
        "clusters_with_several_labels": len(conflicts),
        "conflicting_labels": [[[paths[i], labels[i]] for i in images] for images in conflicts[:_MOST_CONFLICTS]],
    }


def near_duplicates_notes(record: Mapping[str, Any], mode: str, n_dropped: int, n_test: int) -> list[str]:
    """Sentences about the clusters, the most important first.

    Parameters
    ----------
    record : from `near_duplicates_record`.
    mode : ``data.near_duplicates``.
    n_dropped, n_test : number of images that are left out, and of the test split.
    """
    clusters, crossing = record["clusters"], record["clusters_across_splits"]
    if not clusters:
        return []
    leaked = record["test_images_like_training_images"]
    consequence = ("image(s) show the same as a training image, so the result looks better than it is" if leaked
                   else "images show the same as a training image")  # fmt: skip
    across = f"{crossing:,} of {clusters:,} cluster(s) of near-duplicates cross splits: {leaked:,} of {n_test:,} test "
    across += consequence
    if mode == "drop":
        notes = [f"{n_dropped:,} image(s) are left out as near-duplicates of others"]
    elif mode == "group":
        notes = [f"{record['images']:,} near-duplicates are {clusters:,} group(s)"]
    elif crossing:
        across += " (data.near_duplicates: group keeps each cluster in one split)"
        notes = []
    else:
        notes = [f"none of {clusters:,} cluster(s) of near-duplicates crosses splits"]
    if crossing:
        notes.insert(0, across)
    if n_conflicting := record["clusters_with_several_labels"]:
        notes.append(f"{n_conflicting:,} cluster(s) of near-duplicates have different labels "
                     "(near_duplicates in data/prepared/dataset.json)")  # fmt: skip
    return notes
