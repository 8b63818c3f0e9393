"""The code that each result depends on: one list for DVC, for checkpoints and for stored logits.

Paths are relative to the package. DVC requires that ``dvc.yaml`` names the files of `STAGES` too; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import udc_model
from udc_model.files import sha256_of

STAGES = {
    "prepare": ("data", "stages/prepare.py"),
    "resolve": (
        "decisions/actions.py",
        "decisions/checks.py",
        "decisions/familiarity.py",
        "decisions/guarantees.py",
        "decisions/matrix.py",
        "models/hub.py",
        "models/pretrained.py",
        "stages/resolve.py",
    ),
    "train": (
        "config/presets.py",
        "data/augmentation.py",
        "data/batches.py",
        "data/logits.py",
        "data/margins.py",
        "data/transforms.py",
        "decisions",
        "models",
        "native",
        "stages/train.py",
        "training",
    ),
    "evaluate": (
        "data/logits.py",
        "data/margins.py",
        "data/transforms.py",
        "decisions",
        "evaluation",
        "inference",
        "models",
        "native",
        "stages/evaluate.py",
        "stages/explanations.py",
    ),
}
FEATURES = (
    "data/logits.py",
    "data/transforms.py",
    "models",
    "native",
    "training/features.py",
    "training/hardware.py",
)
LOGITS = (
    "data/logits.py",
    "data/transforms.py",
    "decisions/familiarity.py",
    "inference/classifier.py",
    "inference/engine.py",
    "inference/feature_distance.py",
    "inference/feature_statistics.py",
    "inference/fused.py",
    "inference/neighbours.py",
    "models",
    "native",
)
EXPLANATIONS = (
    *LOGITS,
    "evaluation/explanations.py",
    "inference/explainer.py",
    "inference/saliency.py",
)


def code_files(names: Iterable[str]) -> list[Path]:
    """The Python and C files at these paths of the package, or below them."""
    package = Path(udc_model.__file__).parent
    paths = [path for name in names for path in sorted([package / name, *(package / name).rglob("*")])]
    return [path for path in paths if path.suffix in (".py", ".c", ".h") and path.is_file()]


def code_digests(names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each of `code_files`, by its path in the package."""
    package = Path(udc_model.__file__).parent
    return {path.relative_to(package).as_posix(): sha256_of(path) for path in code_files(names)}
