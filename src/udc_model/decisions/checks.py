"""Checks parameters against the classes and image counts of the data, before training."""

from __future__ import annotations

from collections.abc import Mapping

from udc_model.config import EvaluateParams, Params
from udc_model.decisions.calibration import check_cross_validation
from udc_model.decisions.decision import check_provable
from udc_model.decisions.matrix import class_prior, cost_matrix
from udc_model.decisions.policy import check_refer
from udc_model.errors import UdcError


def check_classes(params: Params, classes: list[str]) -> None:
    """Check every class name and number of classes in the parameters.

    Raises
    ------
    UdcError
        ``model.num_labels`` differs from the number of classes, or a parameter names a class that the data lacks.
    """
    num_labels = params.model.num_labels
    if num_labels is not None and num_labels != len(classes):
        raise UdcError(
            f"model.num_labels: is {num_labels}, but the data has {len(classes)} classes: {', '.join(classes)}"
        )
    cost_matrix(params.costs, classes)
    class_prior(params.costs, classes)
    check_refer(params.costs, classes)
    named = [("evaluate.recall_of", name) for name in params.evaluate.recall_of]
    if params.evaluate.recall_floor is not None:
        named.append(("evaluate.recall_floor.class", params.evaluate.recall_floor.name))
    for parameter, name in named:
        if name not in classes:
            raise UdcError(f"{parameter}: the data has no class {name!r}; its classes are {', '.join(classes)}")


def check_counts(evaluate: EvaluateParams, calibration_counts: Mapping[str, int]) -> None:
    """Check that the calibration split is large enough for the policy.

    Parameters
    ----------
    calibration_counts : images of each class in the calibration split.

    Raises
    ------
    UdcError
        The split is empty but needed, has too few images of a class to choose a calibration by cross-validation, or
        too few to prove the recall floor.
    """
    if evaluate.calibration != "none" and not sum(calibration_counts.values()):
        raise UdcError(f"evaluate.calibration: {evaluate.calibration} needs images, but the calibration split is "
                       "empty; raise data.splits.calibration or set evaluate.calibration: none")  # fmt: skip
    if evaluate.calibration in ("auto", "dirichlet"):
        check_cross_validation(min(calibration_counts.values()))
    if evaluate.decision == "recall_floor" and evaluate.recall_floor is not None:
        floor = evaluate.recall_floor
        check_provable(calibration_counts[floor.name], floor.floor, floor.confidence, floor.name)
