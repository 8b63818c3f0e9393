"""Decisions by cost through the real commands: decide, compare, sweeps, the report, and serving."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from udc_model.evaluation.tables import read_metrics
from udc_model.tracking.tags import EXPERIMENT_COMMIT, LINKED, TRAINED_BY

pytestmark = pytest.mark.pipeline

COSTS = "costs.entries=[{actual: bar, predicted: dot, cost: 20}]"


@pytest.fixture(scope="module")
def shapes(new_project, tmp_path_factory):
    """A small evaluated project on image files, with groups, referral, an action and the recall of a class."""
    from PIL import Image

    project = new_project(
        data={"source": "folder", "path": "data/raw/shapes", "image_size": 16, "group": "^(g[0-9]+)_"},
        train={"epochs": 2},
        costs={"preset": "uniform", "refer": 0.4, "actions": {"retest": {"bar": 0.2, "dot": 0.5, "stripe": 0.6}}},
        evaluate={"recall_of": ["bar"], "resamples": 200},
    )
    rng = np.random.default_rng(0)
    for k, label in enumerate(("bar", "dot", "stripe")):
        folder = project.root / "data/raw/shapes" / label
        folder.mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 160, (24, 24, 3), dtype=np.uint8)
            pixels[4 + 5 * k : 9 + 5 * k, 4:20] += 60
            Image.fromarray(pixels).save(folder / f"g{i % 20}_{i:02d}.png")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "data")
    project.run("dvc", "exp", "run", "--name", "first")
    return project


@pytest.fixture(scope="module")
def second(shapes):
    """What an experiment with another decision prints, and the runs before it."""
    before = {run.info.run_id: run for run in shapes.runs()}
    return shapes.run("dvc", "exp", "run", "--name", "second", "-S", "evaluate.decision=argmax").stdout, before


def _without_links(run):
    """What a run holds, without the links that `udc sync` and later stages may add."""
    data = run.data.to_dictionary()
    return data | {"tags": {k: v for k, v in data["tags"].items() if k not in (LINKED, EXPERIMENT_COMMIT)}}


def test_evaluate_predict_and_the_served_model_decide_equally(shapes):
    import mlflow

    table = pd.read_csv(shapes.root / "evaluation/test/predictions.csv").set_index("path")
    files = [shapes.root / "data/raw/shapes" / name for name in table.index]
    predicted = list(csv.DictReader(io.StringIO(shapes.udc("predict", "--csv", *map(str, files)).stdout)))
    run = shapes.runs()[0]
    uri = f"models:/{run.outputs.model_outputs[0].model_id}"
    info = mlflow.models.get_model_info(uri)
    assert info.signature.inputs.input_names() == ["image"]
    assert info.saved_input_example_info["type"] == "dataframe"
    served = mlflow.pyfunc.load_model(uri).predict(
        pd.DataFrame({"image": [base64.b64encode(path.read_bytes()).decode() for path in files]})
    )
    assert [row["class"] for row in predicted] == served["class"].tolist() == table["predicted"].tolist()
    for costs in ([float(row["expected_cost"]) for row in predicted], served["expected_cost"].tolist()):
        assert costs == pytest.approx(table["expected_cost"].tolist(), abs=1e-5)
    assert {"refer", "retest"} <= set(table["predicted"])
    assert set(table.loc[(table["true"] == "dot") & (table["predicted"] == "retest"), "cost_paid"]) <= {0.5}
    text = shapes.udc(
        "predict", *(str(files[list(table["predicted"]).index(name)]) for name in ("refer", "retest"))
    ).stdout
    assert re.search(r"refer +- +0\.4000 .*\n.*retest +- +0\.3", text)


def test_metrics_intervals_figures_and_the_report_are_logged(shapes):
    run = shapes.runs()[0]
    metrics = read_metrics(shapes.root / "evaluation/test/metrics.csv")
    client = shapes.client()
    logged = json.loads(Path(client.download_artifacts(run.info.run_id, "metrics_with_intervals.json")).read_text())
    table = pd.DataFrame(logged["data"], columns=logged["columns"]).set_index(["split", "metric"])
    for name in ("mean_cost", "cost_saved", "recall/bar", "referral_rate", "action_rate/retest", "roc_auc"):
        assert run.data.metrics[f"test/{name}"] == pytest.approx(metrics[name])
        value, low, high = table.loc[("test", name)]
        assert low <= value <= high
        assert value == pytest.approx(metrics[name])
    assert len(run.data.metrics) <= 40
    assert metrics["mean_cost"] == json.loads((shapes.root / "metrics.json").read_text())["test"]["mean_cost"]
    names = {item.path for item in client.list_artifacts(run.info.run_id, "evaluation/test")}
    figures = ("confusion_matrix", "confusion_shares", "confusion_cost", "recall_by_class", "reliability", "cost_curve",
                "threshold_reliability", "referral", "roc", "precision_recall", "costliest_mistakes")  # fmt: skip
    assert {f"evaluation/test/{name}.png" for name in figures} <= names
    shown = {"confusion_matrix.png", "confusion_cost.png", "reliability.png", "cost_curve.png"}
    assert shown <= {item.path for item in client.list_artifacts(run.info.run_id)}
    report = (shapes.root / "evaluation/report.html").read_text(encoding="utf-8")
    mistakes = pd.read_csv(shapes.root / "evaluation/test/costliest_mistakes.csv")
    labels = pd.read_csv(shapes.root / "evaluation/label_quality.csv")
    familiar = pd.read_csv(shapes.root / "evaluation/test/least_familiar.csv")
    cards = sum(min(12, n) for n in (len(mistakes), int(labels["is_suspicious"].sum()), len(familiar)))
    of_training = 2
    others = re.sub(r"<h2>Why: .*?(?=<h2)", "", report, flags=re.DOTALL)  # than those of the explanations
    assert others.count("data:image/") == len(figures) - 2 + of_training + cards  # no shares, no gallery
    assert report.count("data:image/") > others.count("data:image/")
    assert not re.search(r"<script src|https?://|<link|@import|url\(", report)
    assert run.info.run_id not in report  # the file has the same bytes in every clone
    logged = client.download_artifacts(run.info.run_id, "report.html", str(shapes.root.parent))
    assert run.info.run_id in Path(logged).read_text(encoding="utf-8")


def test_decide_needs_no_model(shapes):
    (shapes.root / "model").rename(shapes.root / "away")
    try:
        assert shapes.udc("decide").stdout.startswith("0 of ")
        done = shapes.udc(
            "decide", "-S", "costs.refer=null", "-S", "costs.actions=null", "-S", COSTS, "--out", "costly"
        )
    finally:
        (shapes.root / "away").rename(shapes.root / "model")
    assert "always bar" in done.stdout
    policy = json.loads((shapes.root / "costly/policy.json").read_text())
    assert policy["class_costs"][0] == [0, 20, 1]
    assert "refer" not in set(pd.read_csv(shapes.root / "costly/predictions.csv")["predicted"])
    recorded = (shapes.root / "evaluation/policy.json").read_bytes()
    refused = shapes.udc("decide", "-S", COSTS, "--out", "evaluation", check=False)
    assert "evaluation: has other files, as " in refused.stderr
    assert (shapes.root / "evaluation/policy.json").read_bytes() == recorded
    failed = shapes.udc("decide", "-S", "evaluate.decision=recall_floor",
                        "-S", "evaluate.recall_floor={class: bar}", check=False)  # fmt: skip
    assert failed.returncode == 1
    assert "needs at least 71 groups with its images in the calibration split, which has 2: 69 more" in failed.stderr


def test_sweep_of_one_cost(shapes):
    shapes.udc(
        "decide",
        "-S",
        "costs.refer=null",
        "-S",
        "costs.actions=null",
        "--sweep",
        "true=bar,predicted=dot,values=0:10:2.5",
    )
    table = pd.read_csv(shapes.root / "sweeps/cost_of_bar_as_dot.csv")
    assert table["cost of bar as dot"].tolist() == [0, 2.5, 5, 7.5, 10]
    assert (np.diff(table["images"]) <= 0).all()  # fewer as the cost rises
    assert (np.diff(table["recall/dot"]) <= 1e-12).all()
    cells = pd.read_csv(shapes.root / "sweeps/cost_of_bar_as_dot_confusion.csv")
    assert len(set(cells.groupby("cost")["images"].sum())) == 1
    assert (shapes.root / "sweeps/cost_of_bar_as_dot.png").stat().st_size > 5000
    failed = shapes.udc("decide", "--sweep", "true=bar,values=0:1:0.5", check=False)
    assert "must be like true=A,predicted=B,values=0:20:0.5" in failed.stderr


def test_an_evaluation_parameter_does_not_rerun_train_and_creates_a_run(shapes, second):
    printed, before = second
    assert [name for name in ("prepare", "train", "evaluate") if f"Running stage '{name}'" in printed] == ["evaluate"]
    new = [run for run in shapes.runs() if run.info.run_id not in before]
    assert len(new) == 1
    run = new[0]
    assert run.info.run_name == "second"
    assert run.data.params["evaluate.decision"] == "argmax"
    assert run.data.params["train.epochs"] == "2"
    assert "training/train_loss" in run.data.metrics
    assert run.data.tags[TRAINED_BY] in before
    for run_id, old in before.items():
        again = next(run for run in shapes.runs() if run.info.run_id == run_id)
        assert _without_links(again) == _without_links(old)
        assert again.info.end_time == old.info.end_time


def test_compare_experiments_runs_and_folders(shapes, second):
    first = shapes.runs()[0].info.run_id
    by_experiment = json.loads(shapes.udc("compare", "--json", first, ".").stdout)
    assert "B" in by_experiment["answer"]
    decided = shapes.udc("decide", first, "-S", "evaluate.decision=min_expected_cost").stdout
    assert decided.startswith("0 of ")
    client = shapes.client()
    for run in shapes.runs():
        client.delete_run(run.info.run_id)  # the names now find DVC's experiments only
    assert decided == shapes.udc("decide", "first", "-S", "evaluate.decision=min_expected_cost").stdout
    assert by_experiment == json.loads(shapes.udc("compare", "--json", "first", "second").stdout)
    client.restore_run(first)
    shapes.udc("decide", "-S", COSTS, "--out", "costly")
    refused = shapes.udc("compare", ".", "costly", check=False)
    assert refused.returncode == 1
    assert "bar decided as dot costs 1 and 20" in refused.stderr
    assert "`udc compare . costly --costs .`" in refused.stderr
    assert "B - A" in shapes.udc("compare", ".", "costly", "--costs", ".").stdout
    missing = shapes.udc("compare", ".", "no-such-thing", check=False)
    for text in ("no-such-thing", "MLflow run", "DVC experiment"):
        assert text in missing.stderr
    assert "Traceback" not in missing.stderr


def test_a_cost_monitor_reruns_train_if_a_cost_or_the_policy_changes(shapes):
    shapes.run("git", "checkout", "-q", "params.yaml")
    shapes.set_params(train={"monitor": "normalised_cost", "epochs": 1})
    params = (shapes.root / "params.yaml").read_text()
    shapes.run("dvc", "repro", "-q", "train")
    curves = pd.read_csv(shapes.root / "training/curves.csv")
    assert curves["validation_normalised_cost"].between(0, 2).all()
    for section, values in (("costs", {"refer": 0.3}), ("evaluate", {"calibration": "none"})):
        shapes.set_params(**{section: values})
        shapes.run("dvc", "repro", "-q", "resolve")
        assert "Running stage 'train'" in shapes.run("dvc", "repro", "--dry", "train").stdout
        (shapes.root / "params.yaml").write_text(params)
    shapes.run("dvc", "repro", "-q", "resolve")
    assert "Running stage 'train'" not in shapes.run("dvc", "repro", "--dry", "train").stdout
