"""Applies a trained model and its policy to image files, for ``udc predict``."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from udc_model.config import DataParams
from udc_model.data.decode import BadImageError, decode_rgb
from udc_model.data.formats import SUFFIXES
from udc_model.decisions.policy import POLICY_FILE, Policy
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.inference.classifier import TrainedClassifier, check_same_classes

_BATCH = 64


@dataclass
class Predictions:
    """Decisions for image files.

    Attributes
    ----------
    rows : one mapping per image with ``path``, ``class``, ``expected_cost`` and ``probabilities`` by class name.
    bad : one message per unusable image, with path and reason.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def predict_files(files: Sequence[Path], workspace: Workspace) -> Predictions:
    """Decide image files with the model and the policy of a workspace.

    Unusable images are listed in the result and do not raise an error.

    Raises
    ------
    UdcError
        The workspace has no trained and evaluated model.
    """
    policy_path = workspace.evaluation / POLICY_FILE
    policy = Policy.load(policy_path)
    classifier = TrainedClassifier.load(workspace.model, policy.flip_averaging)
    check_same_classes(classifier, policy, str(policy_path))
    result = Predictions()
    with tqdm(total=len(files), desc="deciding", unit="img", disable=None, leave=False) as bar:
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            stored: dict[str, NDArray[np.uint8]] = {}
            for path in batch:
                try:
                    stored[str(path)] = classifier.preprocessing.to_stored(decode_rgb(path, DataParams().max_pixels))
                except BadImageError as error:
                    result.bad.append(f"{path}: {error}")
            if stored:
                result.rows += _decide(stored, classifier, policy)
            bar.update(len(batch))
    return result


def _decide(
    stored: dict[str, NDArray[np.uint8]], classifier: TrainedClassifier, policy: Policy
) -> list[dict[str, Any]]:
    decisions = policy.apply(classifier.logits_of_stored(np.stack(list(stored.values()))))
    return [
        {
            "path": path,
            "class": policy.outcomes[decisions.decided[i]],
            "expected_cost": float(decisions.expected_cost[i]),
            "probabilities": dict(zip(policy.classes, map(float, decisions.probabilities[i]), strict=True)),
        }
        for i, path in enumerate(stored)
    ]


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Replace folders by the sorted image files below them; duplicates are removed.

    Missing files are not an error here: `predict_files` lists them with the damaged ones.

    Raises
    ------
    UdcError
        A folder contains no images.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        images = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        if not images:
            raise UdcError(f"{path}: no images in this folder")
        files += images
    return list(dict.fromkeys(files))


def write_predictions(rows: list[dict[str, Any]], form: str, stream: TextIO) -> None:
    """Write the rows of `Predictions` to a stream; ``form`` is ``json``, ``csv`` or ``table`` (aligned columns)."""
    if form == "json":
        stream.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif form == "csv":
        classes = list(rows[0]["probabilities"]) if rows else []
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "class", "expected_cost", *[f"p_{name}" for name in classes]])
        writer.writerows([r["path"], r["class"], r["expected_cost"], *r["probabilities"].values()] for r in rows)
    else:
        width = max([4, *(len(row["path"]) for row in rows)])
        names = max([5, *(len(row["class"]) for row in rows)])
        stream.write(f"{'path':<{width}}  {'class':<{names}}  probability  expected cost\n")
        for row in rows:
            probability = row["probabilities"].get(row["class"])  # None for a referral
            cell = f"{'-':>11}" if probability is None else f"{probability:>11.4f}"
            stream.write(f"{row['path']:<{width}}  {row['class']:<{names}}  {cell}  {row['expected_cost']:>13.4f}\n")
