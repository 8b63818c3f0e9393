"""How much better a result looks because the network was trained on other images of the objects in the test split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from udc_model.data.quality.group_patterns import groups_by_name
from udc_model.decisions.decision import clopper_pearson_bound
from udc_model.evaluation.metrics import Scored


def relatives_sentence(
    pattern: str, training_paths: Sequence[str], test_paths: Sequence[str], scored: Scored, confidence: float
) -> str | None:
    """Compare test images of objects that the network was trained on with the others.

    A difference is called one if the intervals of both accuracies (Clopper and Pearson 1934) are apart. An object
    counts as one image in them.

    Parameters
    ----------
    pattern : of file names; its group is the object.
    training_paths, test_paths : of the images of both splits.
    scored : the N test images.
    confidence : level of the intervals.

    Returns
    -------
    None if no test image shows an object that the network was trained on.
    """
    trained, tested = groups_by_name(pattern, training_paths), groups_by_name(pattern, test_paths)
    if trained is None or tested is None:
        return None
    is_seen, objects = np.isin(tested, np.unique(trained)), np.array(tested)
    advice = f"set data.group: '{pattern}'"
    if not is_seen.any():
        return None
    if is_seen.all():
        return (f"By their file names, all {len(tested):,} test images show objects that the network was trained on: "
                f"how it decides new objects is not known; {advice}.")  # fmt: skip
    is_class = scored.decided < scored.num_classes
    is_right = scored.decided == scored.targets
    seen, new = (_accuracy(is_right[rows], objects[rows], confidence) for rows in (is_seen & is_class,
                                                                                   ~is_seen & is_class))  # fmt: skip
    if seen[1] > new[2]:
        conclusion = f"The result looks better than it is for new objects; {advice}."
    else:
        conclusion = f"The difference may be chance. If the model will see new objects, {advice}."
    return (f"By their file names, {is_seen.sum():,} of {len(tested):,} test images show objects that the network was "
            f"trained on. Their accuracy is {seen[0]:.3f} ({seen[1]:.3f} to {seen[2]:.3f}), that of the others "
            f"{new[0]:.3f} ({new[1]:.3f} to {new[2]:.3f}). {conclusion}")  # fmt: skip


def _accuracy(
    is_right: NDArray[np.bool_], objects: NDArray[np.str_], confidence: float
) -> tuple[float, float, float]:  # fmt: skip
    """Share of right decisions of some images, and its interval; of no images, everything is possible."""
    if not len(is_right):
        return np.nan, 0.0, 1.0
    n, share = len(np.unique(objects)), float(is_right.mean())
    low, high = (float(clopper_pearson_bound(each * n, n, (1 + confidence) / 2)) for each in (share, 1 - share))
    return share, low, 1 - high
