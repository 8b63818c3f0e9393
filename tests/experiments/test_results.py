"""Comparisons under one set of costs, and decisions of any result."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from udc_model.cli import main
from udc_model.data.packed import PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.tables import read_metrics, read_predictions, write_predictions
from udc_model.experiments import results as results_module
from udc_model.experiments.results import _varying, compare, cost_difference, sweep_of_runs
from udc_model.experiments.stored import load_decisions, load_evaluation
from udc_model.tracking.lookup import RecordedRun

CLASSES = ["a", "b"]
PRIOR = [0.5, 0.5]


def _result(folder, costs, probabilities, **fields):
    """Write an evaluation folder of 8 images, half of each class; ``probabilities`` of class b."""
    policy = Policy(CLASSES, np.array(costs, float).tolist(), training_prior=PRIOR, **fields)
    p = np.array(probabilities)
    logits = np.log(np.stack([1 - p, p], axis=1)).astype(np.float32)
    names = [f"{i}.png" for i in range(8)]
    split = PackedSplit(np.zeros((8, 2, 2, 3), np.uint8), np.repeat([0, 1], 4), names, [""] * 8, ["0"] * 8)
    (folder / "evaluation").mkdir(parents=True)
    for name in ("calibration", "test"):
        write_predictions(folder / "evaluation" / name, split, logits, policy)
    (folder / "evaluation/policy.json").write_text(policy.to_json(), encoding="utf-8")
    return policy


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Result ``equal`` under equal costs, and ``miss`` whose missed b costs 9, with other probabilities."""
    monkeypatch.chdir(tmp_path)
    _result(tmp_path / "equal", [[0, 1], [1, 0]], [0.2, 0.2, 0.4, 0.6, 0.3, 0.6, 0.7, 0.9])
    _result(tmp_path / "miss", [[0, 1], [9, 0]], [0.05, 0.2, 0.2, 0.6, 0.05, 0.3, 0.7, 0.9])
    return tmp_path


def test_other_costs_name_the_command_which_then_works(results, caplog, capsys):
    assert main(["compare", "equal", "miss"]) == 1
    assert "equal and miss were decided under other costs: b decided as a costs 1 and 9" in caplog.text
    commands = [part for part in caplog.text.split("`") if part.startswith("udc compare")]
    assert commands == ["udc compare equal miss --costs equal", "udc compare equal miss --costs miss"]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    assert "per image" in printed
    assert printed.endswith("\nBoth were decided under the costs of miss.\n")


def test_costs_of_one_result_decide_both(results):
    # under equal costs, b is decided from probability 0.5 on; mistakes: a 0.6 and b 0.3; a 0.6 and b 0.05, 0.3
    equal = compare("equal", "miss", "test", costs="equal").differences[0]
    assert (equal.a, equal.b) == (2 / 8, 3 / 8)
    # at a cost of 9, b is decided from 0.1 on: mistakes are a, a, a, a; a, a, a and the missed b
    miss = compare("equal", "miss", "test", costs="miss").differences[0]
    assert (miss.a, miss.b) == (4 / 8, (3 + 9) / 8)
    assert compare("miss", "miss", "test", costs="equal").differences[0].a == 3 / 8


def test_referral_and_class_frequencies_are_those_of_the_named_result(results):
    _result(results / "rare", [[0, 1], [1, 0]], [0.2, 0.2, 0.4, 0.6, 0.3, 0.6, 0.7, 0.9], refer=0.1,
            deployment_prior=[0.9, 0.1])  # fmt: skip
    with pytest.raises(UdcError, match=r"other weights \(costs.prior\).* `udc compare equal rare --costs equal`"):
        compare("equal", "rare", "test")
    compared = compare("equal", "rare", "test", costs="rare")
    assert compared.differences[0].difference == 0  # the same probabilities
    assert compared.differences[0].a == pytest.approx(
        np.average(read_predictions(Path("rare/evaluation/test/predictions.csv"))["cost_paid"],
                   weights=np.repeat([1.8, 0.2], 4)))  # fmt: skip


def test_costs_that_compare():
    def policy(**fields):
        return Policy(CLASSES, [[0, 1], [1, 0]], **fields)

    assert cost_difference(policy(), policy(refer=0.2)) is None
    assert cost_difference(policy(refer=0.3), policy(refer=0.2)) == "referring an image costs 0.3 and 0.2"
    assert "costs.prior" in cost_difference(policy(deployment_prior=PRIOR), policy(deployment_prior=[0.9, 0.1]))
    assert cost_difference(policy(), None) is None


def test_a_recall_floor_is_fitted_again_under_the_costs(results):
    floor = {"class": "b", "floor": 0.1, "confidence": 0.5, "surcharge": 0.0}
    _result(results / "floor", [[0, 1], [1, 0]], [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08],
            decision="recall_floor", recall_floor=floor)  # fmt: skip
    equal = compare("floor", "floor", "test", costs="miss").differences[0]
    found = read_predictions(Path("floor/evaluation/test/predictions.csv"))["predicted"].eq("b").sum()
    assert found == 0  # as stored, without a surcharge
    assert equal.a < 4 * 9 / 8  # some of b are found now


def test_tables_and_other_classes_cannot_be_decided_again(results):
    table = "equal/evaluation/test/predictions.csv"
    with pytest.raises(UdcError, match=r"^--costs equal/.*: a table has no costs; name a result with policy.json"):
        compare("equal", "miss", "test", costs=table)
    with pytest.raises(UdcError, match="a table alone cannot be decided again; name the result that it is from"):
        compare(table, "miss", "test", costs="miss")
    with pytest.raises(UdcError, match=r"different costs: b decided as a .*`udc compare A B --costs A`"):
        compare(table, "miss/evaluation/test/predictions.csv", "test")
    for name in ("calibration", "test"):
        path = results / f"miss/evaluation/{name}/predictions.csv"
        pd.read_csv(path).drop(columns=["logit_a"]).to_csv(path, index=False)
    with pytest.raises(UdcError, match="has no column logit_a"):
        compare("equal", "miss", "test", costs="equal")


def test_decide_takes_a_result_and_refuses_what_has_no_calibration_split(results, capsys, caplog):
    Path("params.yaml").write_text("costs: {preset: uniform}\nevaluate: {calibration: none, resamples: 100}\n")
    assert main(["decide", "miss"]) == 0
    assert capsys.readouterr().out.startswith("3 of 8 decisions change, mean cost 0.3750")
    assert main(["decide", "equal/evaluation", "--out", "again"]) == 0
    assert json.loads(Path("again/policy.json").read_text())["class_costs"] == [[0, 1], [1, 0]]
    assert main(["compare", "equal", "again"]) == 0
    assert main(["decide", "again"]) == 1
    assert "again: has no predictions of the calibration split; name a result of stage evaluate" in caplog.text
    shutil.rmtree("equal/evaluation/calibration")
    assert main(["decide", "equal"]) == 1
    assert "equal: has no evaluation/calibration/predictions.csv; run `dvc repro` there" in caplog.text


def test_a_table_beside_the_evaluation_is_no_result(results):
    shutil.copy("miss/evaluation/test/predictions.csv", "equal/predictions.csv")  # as of udc predict --csv
    assert load_decisions("equal", "test").predictions["predicted"].eq("b").sum() == 4
    assert len(load_evaluation("equal", "test").calibration) == 8


def test_metrics_are_read_to_the_bit(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("metric,value,low,high\naccuracy,0.1,0,1\ncost,0.30000000000000004,0,1\nroc_auc,,,\n")
    assert read_metrics(path) == {"accuracy": 0.1, "cost": 0.1 + 0.2, "roc_auc": None}
    for text in ("", "a,b\n1,2\n", "metric,value\naccuracy,x\n"):
        path.write_text(text)
        if text:
            with pytest.raises(UdcError, match="cannot be read as a table of metrics"):
                read_metrics(path)


def test_runs_on_other_images_are_named_in_a_sweep():
    runs = [RecordedRun(str(i), str(i), {"train.epochs": str(i), "seed": "1"}, {}, (digest,))
            for i, digest in enumerate(("one", "one", "other"))]  # fmt: skip
    assert _varying(runs, "train.epochs") == ["data"]
    assert _varying(runs[:2], "train.epochs") == []
    assert _varying(runs, "seed") == ["data", "train.epochs"]


@pytest.fixture
def three_runs(monkeypatch):
    runs = [RecordedRun(str(i), str(i), {"train.epochs": str(i), "train.learning_rate": rate}, {})
            for i, rate in enumerate(("0.001", "0.001", "0.01"))]  # fmt: skip
    table = pd.DataFrame({"value": [0.5], "low": [0.4], "high": [0.6]}, index=["accuracy"])
    monkeypatch.setattr(results_module, "evaluated_runs", lambda: runs)
    monkeypatch.setattr(results_module, "_test_metrics", lambda run: table)


@pytest.mark.usefixtures("three_runs")
def test_a_sweep_takes_the_names_and_values_of_run():
    table, varying = sweep_of_runs("epochs", ["accuracy"], ["learning_rate=1e-3"])
    assert table["value"].tolist() == [0, 1]
    assert varying == []


@pytest.mark.usefixtures("three_runs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("epochs", ["acuracy"]), "--metrics acuracy: no run has this metric; the metrics are accuracy"),
        (("epochz", ["accuracy"]), "epochz: no such parameter; did you mean epochs"),
        (("epochs", ["accuracy"], ["learning_rat=1"]), "learning_rat: no such parameter"),
        (("epochs", ["accuracy"], ["learning_rate"]), "--where learning_rate: must be name=value"),
    ],
)
def test_a_sweep_refuses_names_that_nothing_has(arguments, message):
    with pytest.raises(UdcError, match=message):
        sweep_of_runs(*arguments)


@pytest.fixture
def no_runs(monkeypatch):
    monkeypatch.setattr(results_module, "evaluated_runs", list)


@pytest.mark.usefixtures("no_runs")
def test_the_command_that_a_sweep_without_runs_names_can_be_used(results, capsys):
    Path("params.yaml").write_text("costs: {preset: uniform}\nevaluate: {calibration: none, resamples: 100}\n")
    with pytest.raises(UdcError, match="a sweep needs two values") as raised:
        sweep_of_runs("true=a,predicted=b", ["mean_cost"])
    shutil.copytree(results / "equal/evaluation", results / "evaluation")
    assert main(shlex.split(str(raised.value).split("`")[1])[1:]) == 0
    assert "cost_of_a_as_b.csv" in capsys.readouterr().out
    with pytest.raises(UdcError, match=r"`udc decide --sweep 'true=big cat,predicted=b,values=0:20:2'`$"):
        sweep_of_runs("true=big cat,predicted=b", ["mean_cost"])
    with pytest.raises(UdcError, match=r"`udc run --queue -S costs.refer=A,B` and `dvc queue start`$"):
        sweep_of_runs("true=a,predicted=refer", ["mean_cost"])
    with pytest.raises(UdcError, match=r"^true=a: must be like true=A,predicted=B"):
        sweep_of_runs("true=a", ["mean_cost"])


def test_results_with_other_classes_are_not_compared(tmp_path):
    a = _sixty_images(tmp_path / "a", ["a"] * 60)
    b = _sixty_images(tmp_path / "b", ["a"] * 60)
    (b / "policy.json").write_text(Policy(["a", "b", "c"], (1 - np.eye(3)).tolist()).to_json())
    with pytest.raises(UdcError, match=r"^the results have other classes and cannot be compared: a, b; a, b, c$"):
        compare(str(a), str(b), "test")


def _sixty_images(folder, decided, with_policy=True):
    """An evaluation folder with 60 images of class a."""
    (folder / "test").mkdir(parents=True)
    if with_policy:
        (folder / "policy.json").write_text(Policy(["a", "b"], [[0.0, 1.0], [10.0, 0.0]]).to_json())
    names = [f"{i}.png" for i in range(60)]
    pd.DataFrame({"path": names, "sha256": names, "group": "", "true": "a", "predicted": decided,
                  "cost_paid": [float(name == "b") for name in decided], "weight": 1.0}).to_csv(
        folder / "test/predictions.csv", index=False)  # fmt: skip
    return folder


def test_the_policy_beside_a_table_bounds_the_difference(tmp_path):
    a = _sixty_images(tmp_path / "a", ["b"] * 40 + ["a"] * 20)
    b = _sixty_images(tmp_path / "b", ["a"] * 60)
    bare = _sixty_images(tmp_path / "bare", ["a"] * 60, with_policy=False)
    by_folder = compare(str(a), str(b), "test")
    by_table = compare(str(a / "test/predictions.csv"), str(b / "test/predictions.csv"), "test")
    assert json.dumps(by_folder.to_dict()) == json.dumps(by_table.to_dict())
    low = by_folder.differences[0].low
    assert -(40 + 10 * 6) / (60 + 6) < low < -(40 + 10) / (60 + 1)  # one unseen image with a difference of 10
    one_policy = compare(str(a), str(bare / "test/predictions.csv"), "test")
    assert one_policy.differences == by_folder.differences
    none = compare(str(bare / "test/predictions.csv"), str(bare / "test/predictions.csv"), "test")
    assert none.differences[0].low is None
    assert np.isfinite(none.differences[1].low)
