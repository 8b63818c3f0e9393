"""The policy: calibration and decision together, everything between logits and decisions, in one file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.config import CostParams, EvaluateParams
from udc_model.decisions.actions import REFER, action_costs, action_problems, refer_problems, with_actions
from udc_model.decisions.calibration import Calibration, fit_calibration
from udc_model.decisions.decision import decide, expected_costs, shift_prior
from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.frequencies import TrainingFrequencies, logit_offset
from udc_model.decisions.guarantees import Floor, Sample, recall_surcharge, referral_threshold, with_surcharges
from udc_model.decisions.matrix import (
    class_prior,
    cost_matrix,
    guarantee_problems,
    list_classes,
    proof_problems,
)
from udc_model.decisions.stored_policy import PARAMETERS, PolicyRecord, check_parameters
from udc_model.errors import UdcError
from udc_model.files import MAX_JSON, json_text, read_json
from udc_model.records import validated

Floats = NDArray[np.float64]
logger = logging.getLogger(__name__)

POLICY_FILE = "policy.json"
ADVICE = "run evaluate (dvc repro), or restore the folder with `dvc checkout evaluation`"
POLICY_FILE_0_1 = "decision.json"  # name of the file, and below of its fields, in version 0.1.0
_FIELDS_0_1 = {"costs": "class_costs", "rule": "decision"}


@dataclass(frozen=True)
class Decisions:
    """Decisions for N images.

    Parameters
    ----------
    decided : (N,) indices into the policy's ``outcomes``.
    probabilities : (N, K) calibrated.
    expected_costs : (N, D) of each outcome.
    """

    decided: NDArray[np.intp]
    probabilities: Floats
    expected_costs: Floats

    @cached_property
    def expected_cost(self) -> Floats:
        """Expected cost of each decision, (N,)."""
        return np.asarray(self.expected_costs[np.arange(len(self.decided)), self.decided])


@dataclass(frozen=True)
class Policy:
    """Turns logits into decisions. Evaluate, predict and the served model all call :meth:`apply`.

    Parameters
    ----------
    classes : in the order of the logits.
    class_costs : (K, K), true class by decision.
    decision : ``min_expected_cost``, ``argmax``, ``recall_floor`` or ``cost_ceiling``.
    calibration : from logits to probabilities.
    refer : cost of referring an image to a person; None if referral is not available.
    training_prior, deployment_prior : (K,) class frequencies; None if those of deployment are as in training.
    recall_floor : ``class`` (a name or a list), ``floor``, ``confidence`` and the fitted ``surcharge`` on missing the
        class; a list of these for several floors, with one surcharge.
    cost_ceiling : ``ceiling``, ``confidence`` and the fitted ``threshold``, the expected cost above which an image is
        referred.
    flip_averaging : whether the logits are means over an image and its mirror image.
    model_sha256 : digest of the weights whose logits the policy was fitted on; None if it is not recorded.
    actions : costs, (K,) by true class, of each further decision that is no class, by name.
    precision : of the forward pass that computes the logits: ``fp32``, ``fp32_fused`` or ``bf16``.
    familiarity : how usual an image is, and what follows from it; None in policies of earlier versions.
    learned_prior : (K,) class frequencies that the logits assume; None if they are those of training.
    """

    classes: list[str]
    class_costs: list[list[float]]
    decision: str = "min_expected_cost"
    calibration: Calibration = field(default_factory=Calibration)
    refer: float | None = None
    training_prior: list[float] | None = None
    deployment_prior: list[float] | None = None
    recall_floor: dict[str, Any] | list[dict[str, Any]] | None = None
    flip_averaging: bool = False
    model_sha256: str | None = None
    cost_ceiling: dict[str, float] | None = None
    actions: dict[str, list[float]] = field(default_factory=dict)
    precision: str = "fp32"
    familiarity: Familiarity | None = None
    learned_prior: list[float] | None = None

    @cached_property
    def costs_digest(self) -> str:
        """Digest of what makes the mean costs of two results comparable: classes, costs, class frequencies."""
        actions = [self.actions] if self.actions else []  # without any, the digest of earlier versions
        return short_digest([self.classes, self.class_costs, self.refer, self.deployment_prior, *actions])

    @classmethod
    def load(cls, path: Path, max_bytes: int = MAX_JSON) -> Policy:
        """Read a policy file, or the policy file in a folder.

        Files of version 0.1.0 (``decision.json``) are read too.

        Raises
        ------
        UdcError
            The file is missing, damaged or larger than ``max_bytes``, or a value is not allowed.
        """
        path = policy_path(path)
        values = {_FIELDS_0_1.get(name, name): value for name, value in read_json(path, ADVICE, max_bytes).items()}
        record = validated(values, PolicyRecord, str(path), ADVICE)
        method, origin = record.calibration.method, f"{path}: calibration.parameters"
        parameters = validated(record.calibration.parameters, PARAMETERS[method], origin, ADVICE)
        try:
            check_parameters(parameters, len(record.classes))
        except ValueError as error:
            raise UdcError(f"{origin}: {error}; {ADVICE}") from None
        fields = record.model_dump(by_alias=True)
        familiarity = None if record.familiarity is None else Familiarity(**record.familiarity.model_dump())
        return cls(**fields | {"calibration": Calibration(method, parameters.model_dump()),
                               "familiarity": familiarity})  # fmt: skip

    def to_json(self) -> str:
        """The contents of ``policy.json``; without actions and familiarity and in fp32, as in earlier versions."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["calibration"] = vars(self.calibration)
        if not self.actions:
            del values["actions"]
        if self.precision == "fp32":
            del values["precision"]
        if self.learned_prior is None:
            del values["learned_prior"]
        if self.familiarity is None:
            del values["familiarity"]
        else:
            values["familiarity"] = vars(self.familiarity)
        return json_text(values) + "\n"

    @property
    def outcomes(self) -> list[str]:
        """All possible decisions: the classes, then the actions."""
        return [*self.classes, *self.action_names]

    @property
    def action_names(self) -> list[str]:
        """The decisions that are no class: ``refer`` if ``costs.refer`` is set, then those of ``costs.actions``."""
        return [*([] if self.refer is None else [REFER]), *self.actions]

    @property
    def refers_unfamiliar(self) -> bool:
        """Whether unfamiliar images are referred to a person."""
        return self.familiarity is not None and self.familiarity.unfamiliar == "refer"

    @cached_property
    def outcome_costs(self) -> Floats:
        """Cost of each outcome, (K, D), read-only: ``class_costs``, then a column for each action."""
        return _read_only(with_actions(np.array(self.class_costs), self.refer, self.actions))

    def weights(self, targets: NDArray[np.integer]) -> Floats | None:
        """Weight of each of (N,) samples, mean 1, that gives the classes the frequencies of deployment."""
        if self.deployment_prior is None:
            return None
        shares = np.bincount(targets, minlength=len(self.classes)) / len(targets)
        return np.asarray((np.array(self.deployment_prior) / np.maximum(shares, 1e-300))[targets])

    @cached_property
    def logit_offset(self) -> Floats | None:
        """The offset of `Calibration.probabilities`, (K,); None for none, as with ``argmax``, which keeps the weights
        that training has given to the classes."""
        if self.learned_prior is None or self.training_prior is None or self.decision == "argmax":
            return None
        return _read_only(logit_offset(self.training_prior, self.learned_prior))

    def training_probabilities(self, logits: NDArray[np.floating]) -> Floats:
        """Calibrated probabilities (N, K) under the class frequencies of the training images."""
        return self.calibration.probabilities(logits, self.logit_offset)

    def probabilities(self, logits: NDArray[np.floating]) -> Floats:
        """Calibrated probabilities (N, K) under the class frequencies of deployment."""
        p = self.training_probabilities(logits)
        if self.training_prior is None or self.deployment_prior is None:
            return p
        return shift_prior(p, np.array(self.training_prior), np.array(self.deployment_prior))

    def decide(self, probabilities: Floats) -> NDArray[np.intp]:
        """The decision for each row of (N, K) probabilities."""
        rule = "argmax" if self.decision == "argmax" else "min_expected_cost"
        return decide(probabilities, self.decision_costs, rule)

    @cached_property
    def decision_costs(self) -> Floats:
        """The costs (K, D), read-only, whose least expected value is the decision.

        They are ``outcome_costs``, and what a guarantee adds.
        """
        if self.decision == "argmax":
            return _read_only(-np.eye(len(self.classes)))
        if self.cost_ceiling is not None:
            return _read_only(with_actions(np.array(self.class_costs), self.cost_ceiling["threshold"], self.actions))
        if self.recall_floor is not None:
            surcharge = self._stated_floors[0]["surcharge"]
            return _read_only(with_surcharges(self.outcome_costs, self._floors, surcharge))
        return self.outcome_costs

    @property
    def _stated_floors(self) -> list[dict[str, Any]]:
        stated = self.recall_floor or []
        return [stated] if isinstance(stated, dict) else stated

    @property
    def _floors(self) -> list[Floor]:
        return [_floor(each["class"], each["floor"], each["confidence"], self.classes) for each in self._stated_floors]

    @property
    def guarantee(self) -> str | None:
        """What is proved of the decisions, as a phrase; None if nothing is."""
        if self.cost_ceiling is not None:
            ceiling, confidence = self.cost_ceiling["ceiling"], self.cost_ceiling["confidence"]
            return f"mean cost at most {ceiling:g} at confidence {confidence:g}"
        phrases = [f"recall of {each.name} at least {each.floor:g} at confidence {each.confidence:g}"
                   for each in self._floors]  # fmt: skip
        return " and ".join(phrases) or None

    def familiarity_of(self, distances: NDArray[np.floating] | None) -> Floats | None:
        """The familiarity (N,) of images at these distances (N,); None for a policy without it."""
        return None if self.familiarity is None or distances is None else self.familiarity.of(distances)

    def is_unfamiliar(self, familiarity: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which images of this familiarity (N,) are flagged as unfamiliar."""
        assert self.familiarity is not None
        return self.familiarity.is_unfamiliar(familiarity)

    def apply(self, logits: NDArray[np.floating], familiarity: NDArray[np.floating] | None = None) -> Decisions:
        """Decide (N, K) logits of images with this familiarity (N,); None decides by the logits alone."""
        p = self.probabilities(logits)
        expected = expected_costs(p, self.outcome_costs)
        decided = expected.argmin(axis=1) if self.decision == "min_expected_cost" else self.decide(p)
        return Decisions(self.with_unfamiliar(decided, familiarity), p, expected)

    def with_unfamiliar(self, decided: NDArray[np.intp], familiarity: NDArray[np.floating] | None) -> NDArray[np.intp]:
        """Decisions (N,) by probabilities, with ``refer`` for images of a familiarity (N,) that are to be referred."""
        if familiarity is None or not self.refers_unfamiliar:
            return decided
        return np.where(self.is_unfamiliar(familiarity), self.outcomes.index(REFER), decided)


def _read_only(costs: Floats) -> Floats:
    costs.flags.writeable = False
    return costs


def policy_path(path: Path) -> Path:
    """The policy file in a folder; any other path is returned unchanged."""
    if not path.is_dir():
        return path
    return path / (POLICY_FILE_0_1 if (path / POLICY_FILE_0_1).is_file() else POLICY_FILE)


def all_outcome_costs(policies: Sequence[Policy]) -> Floats | None:
    """Costs of the outcomes of all policies, (K, D), rows true; None without a policy.

    Raises
    ------
    UdcError
        The policies have other classes.
    """
    if not policies:
        return None
    for policy in policies[1:]:
        if policy.classes != policies[0].classes:
            first = list_classes(policies[0].classes)
            raise UdcError(f"the results have other classes and cannot be compared: {first}; "
                           f"{list_classes(policy.classes)}")  # fmt: skip
    return np.hstack([policy.outcome_costs for policy in policies])


def fit_policy(
    evaluate: EvaluateParams,
    costs: CostParams,
    classes: list[str],
    training: TrainingFrequencies,
    logits: NDArray[np.floating],
    targets: NDArray[np.integer],
    groups: NDArray[np.integer] | None = None,
    calibration: Calibration | None = None,
) -> Policy:
    """Fit the policy that the sections ``evaluate`` and ``costs`` describe on the calibration split.

    Parameters
    ----------
    training : class frequencies of training.
    logits, targets, groups : (N, K), (N,), (N,) of the calibration split; N may be 0 if nothing is fitted.
    calibration : a calibration fitted before; None fits ``evaluate.calibration``.

    Raises
    ------
    UdcError
        The costs do not fit the classes, or the calibration split is too small for the policy.
    """
    if evaluate.calibration != "none" and not len(targets):
        raise UdcError(f"evaluate.calibration: {evaluate.calibration} needs images, but the calibration split is "
                       "empty; raise data.splits.calibration or set evaluate.calibration: none")  # fmt: skip
    if problems := [*refer_problems(costs, classes), *action_problems(costs, classes)]:
        raise UdcError("\n".join(problems))
    deployment = class_prior(costs, classes, training.images)
    policy = Policy(
        classes,
        cost_matrix(costs, classes).tolist(),
        evaluate.decision,
        refer=costs.refer,
        deployment_prior=None if deployment is None else deployment.tolist(),
        flip_averaging=evaluate.flip_averaging,
        actions=action_costs(costs, classes),
        training_prior=training.training_prior,
        learned_prior=training.learned_prior,
    )
    if calibration is None:
        doubles = logits.astype(np.float64)
        calibration = fit_calibration(evaluate.calibration, doubles, targets, groups, policy.logit_offset)
        if calibration.parameters.get("temperature") == 1.0:
            logger.info("temperature: 1, since no other fits the %d calibration images better", len(targets))
    policy = replace(policy, calibration=calibration)
    return _with_guarantee(policy, evaluate, costs, logits, targets, groups)


def _with_guarantee(
    policy: Policy,
    evaluate: EvaluateParams,
    costs: CostParams,
    logits: NDArray[np.floating],
    targets: NDArray[np.integer],
    groups: NDArray[np.integer] | None,
) -> Policy:
    """The policy with the fitted surcharge or threshold, if the decision has a guarantee."""
    if problems := [*guarantee_problems(evaluate, costs, policy.classes), *proof_problems(evaluate)]:
        raise UdcError("\n".join([*problems, f"the classes of the data are: {list_classes(policy.classes)}"]))
    if evaluate.decision == "recall_floor":
        stated = [{"class": each.name, "floor": each.floor, "confidence": each.confidence}
                  for each in evaluate.recall_floors]  # fmt: skip
        policy = replace(policy, recall_floor=stated if isinstance(evaluate.recall_floor, list) else stated[0])
    if evaluate.decision == "cost_ceiling":
        assert evaluate.cost_ceiling is not None  # config/evaluate.py checks it
        policy = replace(policy, cost_ceiling=evaluate.cost_ceiling.model_dump())
    return fit_guarantee(policy, logits, targets, groups)


def fit_guarantee(
    policy: Policy,
    logits: NDArray[np.floating],
    targets: NDArray[np.integer],
    groups: NDArray[np.integer] | None,
) -> Policy:
    """The policy with the surcharge or threshold that proves its floors or its ceiling, if it states any.

    Parameters
    ----------
    logits, targets, groups : (N, K), (N,), (N,) of the calibration split.

    Raises
    ------
    UdcError
        The guarantee cannot be proved.
    """
    sample = Sample(policy.probabilities(logits), targets, groups)
    if policy.recall_floor is not None:
        surcharge = recall_surcharge(sample, policy.outcome_costs, policy._floors)
        floors = [floor | {"surcharge": surcharge} for floor in policy._stated_floors]
        return replace(policy, recall_floor=floors if isinstance(policy.recall_floor, list) else floors[0])
    if policy.cost_ceiling is not None:
        if policy.refer is None:
            raise UdcError("evaluate.cost_ceiling: needs costs.refer, the cost of referring an image to a person")
        limit = policy.cost_ceiling
        threshold = referral_threshold(sample, np.array(policy.class_costs), policy.refer, policy.actions,
                                       limit["ceiling"], limit["confidence"])  # fmt: skip
        return replace(policy, cost_ceiling=limit | {"threshold": threshold})
    return policy


def _floor(names: str | list[str], floor: float, confidence: float, classes: list[str]) -> Floor:
    """A floor of classes by name."""
    several = [names] if isinstance(names, str) else names
    return Floor(tuple(classes.index(name) for name in several), floor, confidence, " or ".join(several))


def short_digest(value: Any) -> str:
    """The first eight characters of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
