"""Checks parameters against the classes and image counts of the data, before training. One error lists all findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from udc_model.config import CostParams, EvaluateParams, Params
from udc_model.decisions.actions import (
    REFER,
    action_costs,
    action_problems,
    refer_problems,
    unusable_name,
    with_actions,
)
from udc_model.decisions.calibration import CROSS_VALIDATED, check_cross_validation
from udc_model.decisions.familiarity import unfamiliar_problems
from udc_model.decisions.guarantees import Floor, check_ceiling, check_floor
from udc_model.decisions.matrix import (
    cost_matrix,
    cost_problems,
    guarantee_problems,
    list_classes,
    no_class,
    prior_problems,
    proof_problems,
)
from udc_model.errors import UdcError


def check_classes(params: Params, classes: Sequence[str]) -> None:
    """Check the class names of the data, and every class name and number of classes in the parameters.

    Raises
    ------
    UdcError
        A class name cannot be used, ``model.num_labels`` differs from the number of classes, or a parameter names a
        class that the data lacks. The message lists all of them.
    """
    _check(params, classes, None)


def check_data(
    params: Params,
    classes: Sequence[str],
    calibration_counts: Mapping[str, int],
    calibration_groups: Sequence[Mapping[str, int]] | None = None,
) -> None:
    """Check parameters against the classes, as `check_classes`, and against the size of the calibration split.

    Parameters
    ----------
    calibration_counts : images of each class in the calibration split.
    calibration_groups : images of each class in each group of the calibration split; None if it has no groups.

    Raises
    ------
    UdcError
        As `check_classes`; or the calibration split is too small for the policy. The message lists all findings.
    """
    _check(params, classes, calibration_counts, calibration_groups)


def _check(
    params: Params,
    classes: Sequence[str],
    counts: Mapping[str, int] | None,
    groups: Sequence[Mapping[str, int]] | None = None,
) -> None:
    problems = [*name_problems(classes), *_label_problems(params, classes)]
    _raise([*problems, *policy_problems(params.evaluate, params.costs, classes, counts, groups)], classes)


def check_policy(
    evaluate: EvaluateParams,
    costs: CostParams,
    classes: Sequence[str],
    calibration_counts: Mapping[str, int],
    calibration_groups: Sequence[Mapping[str, int]] | None = None,
) -> None:
    """Check the sections ``evaluate`` and ``costs`` only, as `check_data`."""
    problems = policy_problems(evaluate, costs, classes, calibration_counts, calibration_groups)
    _raise([*refer_problems(costs, classes), *problems], classes)


def _raise(problems: Sequence[str], classes: Sequence[str]) -> None:
    if not problems:
        return
    heading = [f"{len(problems)} parameters or class names do not fit the data:"] if len(problems) > 1 else []
    lines = [f"  {line}" for line in problems] if heading else problems
    about_classes = [f"the classes of the data are: {list_classes(classes)}"] if "class" in " ".join(problems) else []
    raise UdcError("\n".join([*heading, *lines, *about_classes]))


def name_problems(classes: Sequence[str]) -> list[str]:
    """Class names that messages, tables or decisions cannot use, one sentence each."""
    problems = []
    for name in classes:
        if reason := _unusable(name):
            problems.append(f"class {name!r}: {reason}; rename it, or give it another name in data.merge_labels")
    return problems


def _unusable(name: str) -> str | None:
    """Why a class name cannot be used, or None."""
    return "is the name of the decision to refer an image to a person" if name == REFER else unusable_name(name)


def _label_problems(params: Params, classes: Sequence[str]) -> list[str]:
    num_labels = params.model.num_labels
    if num_labels is None or num_labels == len(classes):
        return []
    return [f"model.num_labels: is {num_labels}, but the data has {len(classes)} classes"]


def policy_problems(
    evaluate: EvaluateParams,
    costs: CostParams,
    classes: Sequence[str],
    calibration_counts: Mapping[str, int] | None = None,
    calibration_groups: Sequence[Mapping[str, int]] | None = None,
) -> list[str]:
    """What in the sections ``evaluate`` and ``costs`` does not fit the data, one sentence each.

    Parameters
    ----------
    calibration_counts : images of each class in the calibration split; None leaves out what depends on them.
    calibration_groups : the same of each group of the calibration split; None if it has no groups.
    """
    problems = cost_problems(costs, classes) or _errors_of([lambda: cost_matrix(costs, list(classes))])
    problems += [*action_problems(costs, classes), *prior_problems(costs, classes)]
    problems += [f"evaluate.recall_of: {no_class(name, classes)}" for name in evaluate.recall_of if name not in classes]
    twice = [name for name, count in Counter(evaluate.recall_of).items() if count > 1]
    problems += [f"evaluate.recall_of: names the class {name!r} twice" for name in twice]
    problems += unfamiliar_problems(evaluate, costs, calibration_counts, calibration_groups)
    unfit = guarantee_problems(evaluate, costs, classes)
    if calibration_counts is not None:
        problems += _count_problems(evaluate, classes, calibration_counts, calibration_groups)
        if not unfit:
            problems += _unproved(evaluate, costs, classes, calibration_counts, calibration_groups)
    return [*problems, *unfit, *proof_problems(evaluate)]


def _count_problems(
    evaluate: EvaluateParams,
    classes: Sequence[str],
    calibration_counts: Mapping[str, int],
    calibration_groups: Sequence[Mapping[str, int]] | None,
) -> list[str]:
    """Why the calibration split is too small for the policy."""
    counts = [calibration_counts.get(name, 0) for name in classes]
    checks: list[Callable[[], object]] = []
    if evaluate.calibration != "none" and not sum(counts):
        return [f"evaluate.calibration: {evaluate.calibration} needs images, but the calibration split is empty; "
                "raise data.splits.calibration or set evaluate.calibration: none"]  # fmt: skip
    if evaluate.calibration in CROSS_VALIDATED:
        num_groups = None if calibration_groups is None else len(calibration_groups)
        checks.append(lambda: check_cross_validation(min(counts), num_groups))
    return _errors_of(checks)


def group_counts(labels: Sequence[str], groups: Sequence[str]) -> list[dict[str, int]] | None:
    """Images of each class in each group; None if no image has a group. An image without a group is one of its own."""
    if not any(groups):
        return None
    counts: dict[object, Counter[str]] = defaultdict(Counter)
    for i, (label, group) in enumerate(zip(labels, groups, strict=True)):
        counts[group or i][label] += 1
    return [dict(each) for each in counts.values()]


def _unproved(
    evaluate: EvaluateParams,
    costs: CostParams,
    classes: Sequence[str],
    calibration_counts: Mapping[str, int],
    calibration_groups: Sequence[Mapping[str, int]] | None,
) -> list[str]:
    """Guarantees that the calibration split could not prove even if all its images were decided right."""

    def sizes(names: Sequence[str]) -> NDArray[np.float64]:
        if calibration_groups is None:
            return np.ones(sum(calibration_counts.get(name, 0) for name in names))
        counts = np.array([sum(group.get(name, 0) for name in names) for group in calibration_groups], dtype=float)
        return counts[counts > 0]

    has_groups = calibration_groups is not None
    checks: list[Callable[[], object]] = []
    if evaluate.decision == "recall_floor":
        for each in evaluate.recall_floors:
            floor = Floor((), each.floor, each.confidence, " or ".join(each.classes))
            checks.append(partial(check_floor, sizes(each.classes), floor, has_groups))
    limit = evaluate.cost_ceiling
    is_fitting = not cost_problems(costs, classes) and not action_problems(costs, classes)
    if evaluate.decision == "cost_ceiling" and limit is not None and is_fitting:
        outcomes = with_actions(cost_matrix(costs, list(classes)), costs.refer, action_costs(costs, classes))
        lowest, highest = float(outcomes.min()), float(outcomes.max())
        checks.append(
            lambda: check_ceiling(sizes(classes), limit.ceiling, limit.confidence, lowest, highest, has_groups)
        )
    return _errors_of(checks)


def _errors_of(checks: Sequence[Callable[[], object]]) -> list[str]:
    """The messages of the checks that raise an error."""
    problems = []
    for check in checks:
        try:
            check()
        except UdcError as error:
            problems.append(str(error))
    return problems
