"""The decision rule: all that stands between logits and decisions, in one file beside the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.costs.calibration import Calibration, fit_calibration
from udc_model.costs.decision import decide, expected_costs, recall_surcharge, shift_prior, with_surcharge
from udc_model.costs.matrix import class_prior, cost_matrix, with_referral
from udc_model.errors import UdcError
from udc_model.params import CostParams, EvaluateParams

Floats = NDArray[np.float64]
logger = logging.getLogger(__name__)

DECISION_FILE = "decision.json"
REFER = "refer"  # the decision to hand an image to a person


@dataclass(frozen=True)
class Decisions:
    """``decided`` (N,) indices into the rule's ``outcomes``, ``probabilities`` (N, K) calibrated, and
    ``expected_cost`` (N,) of the decision."""

    decided: NDArray[np.intp]
    probabilities: Floats
    expected_cost: Floats


@dataclass(frozen=True)
class DecisionRule:
    """How logits become decisions; the one function of evaluate, predict and the served model is :meth:`apply`.

    Parameters
    ----------
    classes : in the order of the logits.
    costs : (K, K), rows true.
    rule : ``min_expected_cost``, ``argmax`` or ``recall_floor``.
    calibration : from logits to probabilities.
    refer : price of handing an image to a person; None where that is not offered.
    training_prior, deployment_prior : (K,) class frequencies; None where those of deployment are as in training.
    recall_floor : ``class``, ``floor``, ``confidence`` and the ``surcharge`` on missing the class that was found.
    flip_averaging : whether the logits that it was made for are means of an image's and its mirror image's.
    """

    classes: list[str]
    costs: list[list[float]]
    rule: str = "min_expected_cost"
    calibration: Calibration = field(default_factory=Calibration)
    refer: float | None = None
    training_prior: list[float] | None = None
    deployment_prior: list[float] | None = None
    recall_floor: dict[str, Any] | None = None
    flip_averaging: bool = False

    @classmethod
    def load(cls, path: Path) -> DecisionRule:
        """Read ``decision.json``; :class:`UdcError` if it is missing or damaged."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**values | {"calibration": Calibration(**values["calibration"])})
        except FileNotFoundError:
            raise UdcError(f"{path}: no such file; run evaluate first (dvc repro)") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UdcError(f"{path}: cannot be read: {error!r}") from None

    def to_json(self) -> str:
        """The contents of ``decision.json``."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @property
    def outcomes(self) -> list[str]:
        """What can be decided: the classes, and at the end ``refer`` where it is offered."""
        return self.classes if self.refer is None else [*self.classes, REFER]

    @property
    def prices(self) -> Floats:
        """The cost of each outcome, (K, D), rows true."""
        return with_referral(np.array(self.costs), self.refer)

    def weights(self, targets: NDArray[np.integer]) -> Floats | None:
        """How often each of (N,) samples counts so that the classes are as frequent as in deployment, mean 1."""
        if self.deployment_prior is None:
            return None
        shares = np.bincount(targets, minlength=len(self.classes)) / len(targets)
        return np.asarray((np.array(self.deployment_prior) / np.maximum(shares, 1e-300))[targets])

    def probabilities(self, logits: NDArray[np.floating]) -> Floats:
        """Calibrated probabilities (N, K) under the class frequencies of deployment."""
        p = self.calibration.probabilities(logits)
        if self.training_prior is None or self.deployment_prior is None:
            return p
        return shift_prior(p, np.array(self.training_prior), np.array(self.deployment_prior))

    def decide(self, probabilities: Floats) -> NDArray[np.intp]:
        """The decision for each row of (N, K) probabilities."""
        if self.recall_floor is None:
            return decide(probabilities, self.prices, self.rule)
        k = self.classes.index(self.recall_floor["class"])
        return decide(
            probabilities, with_surcharge(self.prices, k, self.recall_floor["surcharge"]), "min_expected_cost"
        )

    def apply(self, logits: NDArray[np.floating]) -> Decisions:
        """Decide (N, K) logits."""
        p = self.probabilities(logits)
        decided = self.decide(p)
        return Decisions(decided, p, expected_costs(p, self.prices)[np.arange(len(p)), decided])


def fit_rule(
    evaluate: EvaluateParams,
    costs: CostParams,
    classes: list[str],
    training_counts: Sequence[float],
    logits: NDArray[np.floating],
    targets: NDArray[np.integer],
    groups: NDArray[np.integer] | None = None,
    calibration: Calibration | None = None,
) -> DecisionRule:
    """The rule that the sections ``evaluate`` and ``costs`` ask for, fitted on the calibration split.

    Parameters
    ----------
    training_counts : training images of each class, or numbers in proportion to them.
    logits, targets, groups : (N, K), (N,), (N,) of the calibration split; N may be 0 where nothing is to be fitted.
    calibration : one that was fitted before; None fits ``evaluate.calibration``.

    Raises
    ------
    UdcError
        The prices do not fit the classes, or the calibration split is too small for what is asked.
    """
    needs = evaluate.calibration if evaluate.calibration != "none" else None
    if needs and not len(targets):
        raise UdcError(f"evaluate.calibration: {needs} needs images, but the calibration split is empty; "
                       "raise data.splits.calibration or set evaluate.calibration: none")  # fmt: skip
    if costs.refer is not None and REFER in classes:
        raise UdcError(f"costs.refer: cannot be offered where a class is called {REFER!r}; rename the class")
    if calibration is None:
        calibration = fit_calibration(evaluate.calibration, logits.astype(np.float64), targets, groups)
        if calibration.parameters.get("temperature") == 1.0:
            logger.info("temperature 1 is kept: no other is more likely for the %d calibration images", len(targets))
    deployment = class_prior(costs, classes)
    rule = DecisionRule(
        classes,
        cost_matrix(costs, classes).tolist(),
        evaluate.decision,
        calibration,
        costs.refer,
        (np.array(training_counts) / sum(training_counts)).tolist(),
        None if deployment is None else deployment.tolist(),
        flip_averaging=evaluate.flip_averaging,
    )
    if evaluate.decision != "recall_floor":
        return rule
    return _with_recall_floor(rule, evaluate, logits, targets)


def _with_recall_floor(
    rule: DecisionRule, evaluate: EvaluateParams, logits: NDArray[np.floating], targets: NDArray[np.integer]
) -> DecisionRule:
    wanted = evaluate.recall_floor
    assert wanted is not None  # params.py sees to it
    if wanted.name not in rule.classes:
        raise UdcError(f"evaluate.recall_floor.class: the data has no class {wanted.name!r}; "
                       f"its classes are {', '.join(rule.classes)}")  # fmt: skip
    surcharge = recall_surcharge(
        rule.probabilities(logits), targets, rule.prices, rule.classes.index(wanted.name), wanted.floor,
        wanted.confidence, wanted.name,
    )  # fmt: skip
    found = {"class": wanted.name, "floor": wanted.floor, "confidence": wanted.confidence, "surcharge": surcharge}
    return DecisionRule(**vars(rule) | {"recall_floor": found})
