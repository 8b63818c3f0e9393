"""Decide images with the class frequencies that are estimated from the images themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.data.packed import group_indices
from udc_model.decisions.calibration import fit_method
from udc_model.decisions.policy import POLICY_FILE, Policy, fit_guarantee
from udc_model.decisions.prior import SHIFT_LEVEL, describe_prior, estimate_prior, shift_test
from udc_model.errors import UdcError
from udc_model.evaluation.tables import logits_of, targets_of

_REFITS = 50  # calibrations on resamples of the calibration split
_SEED = 20210610
_LARGEST_REFITTED = 30_000_000  # logits times calibrations; beyond, fewer calibrations


def with_estimated_prior(
    policy: Policy, logits: NDArray[np.floating], calibration: pd.DataFrame | None
) -> tuple[Policy, str]:
    """The policy with the class frequencies that are estimated from unlabelled images, and a text about the estimate.

    A recall floor is fitted again for the changed decisions.

    Parameters
    ----------
    logits : (N, K) of the images; N > 0.
    calibration : predictions of the calibration split; None if they are not available, so that the interval counts the
        calibration as exact and nothing shows whether the images changed in another way.

    Raises
    ------
    UdcError
        See `check_can_estimate`; or a recall floor cannot be proved.
    """
    check_can_estimate(policy, calibration)
    training, n = np.array(policy.training_prior), len(logits)
    probabilities = policy.training_probabilities(logits)
    if calibration is None:
        estimate = estimate_prior(probabilities, training)
        note = ("note: not checked whether more than the class frequencies changed, since the predictions of the "
                "calibration split are missing; the intervals are too short")  # fmt: skip
    else:
        known, targets = logits_of(calibration, policy.classes), targets_of(calibration, policy.classes)
        estimate = estimate_prior(probabilities, training, _refitted(policy, known, targets, logits))
        note = _shift_note(shift_test(probabilities, estimate.prior, training,
                                      policy.training_probabilities(known), targets), n)  # fmt: skip
    policy = replace(policy, deployment_prior=estimate.prior.tolist())
    if calibration is not None:
        policy = fit_guarantee(policy, known, targets, group_indices(list(calibration["group"])))
    return policy, f"{describe_prior(estimate, policy.classes, training, n)}\n{note}\n"


def check_can_estimate(policy: Policy, calibration: pd.DataFrame | None) -> None:
    """Check that the class frequencies of a policy can be replaced; the parameters are those of `with_estimated_prior`.

    Raises
    ------
    UdcError
        The policy has a guarantee that depends on the class frequencies, or one that cannot be fitted again; or the
        frequencies of training are missing.
    """
    if policy.training_prior is None:
        raise UdcError(f"{POLICY_FILE}: training_prior is missing; run evaluate (dvc repro)")
    floors = policy.recall_floor if isinstance(policy.recall_floor, list) else [policy.recall_floor]
    has_set = any(floor is not None and not isinstance(floor["class"], str) for floor in floors)
    if policy.cost_ceiling is not None or has_set:
        raise UdcError("--estimate-prior: cost_ceiling, and recall_floor of a set of classes, cannot be proved for "
                       "other class frequencies than those of the calibration split; leave the option out")  # fmt: skip
    if policy.recall_floor is not None and calibration is None:
        raise UdcError("--estimate-prior: recall_floor must be fitted again, but calibration/predictions.csv is "
                       "missing beside the policy; run `dvc checkout evaluation` or `dvc repro`")  # fmt: skip


def _refitted(
    policy: Policy, known: NDArray[np.floating], targets: NDArray[np.intp], logits: NDArray[np.floating]
) -> Iterator[NDArray[np.float64]]:
    """Probabilities of images (N, K) by calibrations that are fitted on resamples of the calibration split.

    The method is that of the policy, which was selected before. Each class keeps its number of images, so that every
    calibration can be fitted.
    """
    if policy.calibration.method == "none":
        return
    rng = np.random.default_rng(_SEED)
    by_class = [np.flatnonzero(targets == k) for k in np.unique(targets)]
    for _ in range(max(5, min(_REFITS, _LARGEST_REFITTED // logits.size))):
        rows = np.concatenate([rng.choice(each, len(each)) for each in by_class])
        offset, doubles = policy.logit_offset, known[rows].astype(np.float64)
        fitted = fit_method(policy.calibration.method, doubles, targets[rows], None, offset)
        yield fitted.probabilities(logits, offset)


def _shift_note(p_value: float | None, n: int) -> str:
    if p_value is None:
        return ("note: not checked whether more than the class frequencies changed, since classes that are expected "
                "among the images have none in the calibration split")  # fmt: skip
    if p_value < SHIFT_LEVEL:
        return (f"warning: the images differ from the calibration split by more than their class frequencies (p = "
                f"{p_value:.3f}); the estimate and the decisions may be wrong: check camera, preparation, "
                "classes")  # fmt: skip
    return f"no sign that more than the class frequencies changed (p = {p_value:.2f}, {n:,} images)"
