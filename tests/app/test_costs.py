"""Costs of a session: actions, referral, guarantees, and the lines for params.yaml."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from udc_model.app.costs import params_lines, under_session_costs
from udc_model.config import CostParams
from udc_model.config.yaml12 import as_yaml, read_yaml
from udc_model.decisions.actions import action_costs
from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.matrix import cost_matrix
from udc_model.decisions.policy import Policy
from udc_model.decisions.session_costs import CellCost, SessionCosts
from udc_model.errors import UdcError

CLASSES = ["a", "b"]
POLICY = Policy(CLASSES, [[0.0, 1.0], [1.0, 0.0]], refer=0.4, actions={"retest": [0.2, 0.3]})
FLOOR = {"class": "a", "floor": 0.5, "confidence": 0.9, "surcharge": 0.0}


def _costs(*cells, refer=0.4):
    return SessionCosts(cells=[CellCost(true=true, decided=decided, cost=cost) for true, decided, cost in cells],
                        refer=refer)  # fmt: skip


def _calibration(n=60):
    """Predictions of a calibration split, of which a fifth are wrong."""
    targets = np.arange(n) % 2
    logits = (
        np.where((np.arange(n) % 10 < 2)[:, None], 1.0, -1.0) * np.array([[-1.0, 1.0]]) * (2 * targets - 1)[:, None]
    )
    return pd.DataFrame({"true": np.array(CLASSES)[targets], "group": "", "logit_a": -logits[:, 0],
                         "logit_b": -logits[:, 1]})  # fmt: skip


def test_unchanged_costs_are_the_stored_policy():
    assert under_session_costs(POLICY, _costs(), None) is POLICY


def test_cells_of_classes_and_actions_and_referral_change():
    policy = under_session_costs(POLICY, _costs(("a", "b", 30.0), ("b", "retest", 0.1), refer=2.0), None)
    assert policy.outcome_costs.tolist() == [[0, 30, 2, 0.2], [1, 0, 2, 0.1]]
    assert POLICY.outcome_costs.tolist() == [[0, 1, 0.4, 0.2], [1, 0, 0.4, 0.3]]
    assert under_session_costs(POLICY, _costs(refer=None), None).action_names == ["retest"]


@pytest.mark.parametrize("number", [3, 12])
def test_the_lines_in_place_of_those_of_a_file_give_these_costs_and_keep_the_others(tmp_path, number):
    classes = ["1e-5", *(f"class {k}" for k in range(1, number))]
    others = {"default": 2.0, "unfamiliar": "refer", "prior": {classes[1]: 0.4}}
    entries = [{"actual": classes[0], "predicted": classes[1], "cost": 7.0},
               {"actual": classes[1], "predicted": classes[2], "cost": 9.0}]  # fmt: skip
    of_file = others | {"entries": entries, "refer": 0.4, "actions": {"retest": 3.0, "wait": 1.0}}
    file = tmp_path / "params.yaml"
    file.write_text(as_yaml({"costs": of_file}))
    params = CostParams.model_validate(of_file)
    stored = Policy(classes, cost_matrix(params, classes).tolist(), refer=0.4, actions=action_costs(params, classes))
    costs = _costs((classes[0], classes[1], 5.0), (classes[2], classes[0], 8.0), (classes[1], "retest", 2.0), refer=0.5)
    policy = under_session_costs(stored, costs, None)
    section = read_yaml(params_lines(policy, file))["costs"]
    assert [each["cost"] for each in section["entries"]] == [5, 9, 8]
    kept = CostParams.model_validate(of_file | section)
    assert cost_matrix(kept, classes).tolist() == policy.class_costs
    assert action_costs(kept, classes) == policy.actions
    assert kept.refer == 0.5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "params.yaml: no such file"),
        ("costs: {refer: -1}", "costs.refer"),
        ("costs: {entries: [{actual: c, predicted: a, cost: 2}]}", "'c'"),
    ],
)
def test_a_file_without_usable_costs_gets_the_reason_as_a_comment(tmp_path, text, reason):
    file = tmp_path / "params.yaml"
    if text is not None:
        file.write_text(text)
    lines = params_lines(POLICY, file)
    assert reason in lines
    assert read_yaml(lines) is None


def test_a_floor_is_fitted_again_on_the_calibration_split():
    stored = replace(POLICY, decision="recall_floor", recall_floor=FLOOR)
    with pytest.raises(UdcError, match=r"recall of a at least 0\.5.*predictions\.csv is missing"):
        under_session_costs(stored, _costs(("b", "a", 50.0)), None)
    policy = under_session_costs(stored, _costs(("b", "a", 50.0)), _calibration())
    assert policy.class_costs == [[0, 1], [50, 0]]
    assert policy.recall_floor["surcharge"] > 0  # without it, a is not decided at this cost


def test_a_policy_that_refers_needs_the_cost_of_it():
    familiarity = Familiarity("0" * 64, 1, 1, [1.0] * 99, "refer")
    for stored in (
        replace(POLICY, familiarity=familiarity),
        replace(POLICY, cost_ceiling={"ceiling": 1.0, "confidence": 0.9}),
    ):
        with pytest.raises(UdcError, match="referral: needs a cost"):
            under_session_costs(stored, _costs(refer=None), _calibration())
    policy = under_session_costs(replace(POLICY, familiarity=familiarity), _costs(refer=3.0), None)
    assert policy.refers_unfamiliar
