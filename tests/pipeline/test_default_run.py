"""The default run, from `dvc repro` to the served model."""

import base64
import hashlib
import io
import json
import os
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from udc_model.evaluation.tables import read_metrics

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def demo(new_project):
    """A project with the default parameters after `dvc repro`; tests do not change its outputs."""
    project = new_project()
    project.has_senders = True
    project.repro = project.run("dvc", "repro")
    return project


def _metrics(project):
    return json.loads((project.root / "metrics.json").read_text(encoding="utf-8"))


def test_accuracy_and_outputs(demo):
    metrics = _metrics(demo)
    assert metrics["test"]["accuracy"] >= 0.97
    assert {split: list(values) for split, values in metrics.items()} == {
        "test": ["mean_cost", "mean_cost_low", "mean_cost_high", "normalised_cost", "accuracy", "referral_rate",
                 "log_loss"],
        "validation": ["mean_cost", "log_loss"],
    }  # fmt: skip
    table = read_metrics(demo.root / "evaluation/test/metrics.csv")
    assert metrics["test"]["mean_cost"] == table["mean_cost"] <= table["argmax_mean_cost"] * 1.2 + 0.05
    assert metrics["test"]["mean_cost_low"] <= metrics["test"]["mean_cost"] <= metrics["test"]["mean_cost_high"]
    names = {p.relative_to(demo.root).as_posix() for f in ("model", "training", "evaluation")
             for p in (demo.root / f).rglob("*") if p.is_file()}  # fmt: skip
    assert names >= {
        "model/model.safetensors", "model/config.json", "model/preprocessor_config.json",
        "training/curves.csv", "training/curves.png", "training/augmented.png", "evaluation/policy.json",
        "evaluation/test/predictions.csv", "evaluation/test/confusion_matrix.png", "evaluation/test/roc.png",
        "evaluation/test/precision_recall.png", "evaluation/test/per_class.csv", "evaluation/test/metrics.csv",
        "evaluation/report.html", "evaluation/test/reliability.png", "evaluation/test/confusion_cost.png",
    }  # fmt: skip
    predictions = pd.read_csv(demo.root / "evaluation/test/predictions.csv", dtype={"true": str, "predicted": str})
    assert (predictions["true"] == predictions["predicted"]).mean() == metrics["test"]["accuracy"]


def test_repro_prints_no_warnings(demo):
    output = demo.repro.stdout + demo.repro.stderr
    assert not any(word in output for word in ("Warning", "WARNING", "Traceback", "alembic", "INFO"))


def test_a_second_repro_runs_nothing(demo):
    assert "Data and pipelines are up to date" in demo.run("dvc", "repro").stdout


def test_dependencies_are_sources_only(demo):
    """With compiled files among them, stages would run again in every clone."""
    lock = yaml.safe_load((demo.root / "dvc.lock").read_text(encoding="utf-8"))
    for stage in lock["stages"].values():
        for dep in stage["deps"]:
            if dep["path"].startswith("src/") and "nfiles" in dep:
                assert dep["nfiles"] == len(demo.run("git", "ls-files", dep["path"]).stdout.splitlines())


def test_git_status_shows_lock_and_metrics_only(demo):
    status = demo.run("git", "status", "--porcelain").stdout.split()
    assert set(status) <= {"??", "A", "dvc.lock", "metrics.json"}


def test_one_run_has_parameters_metrics_data_and_artifacts(demo):
    run = demo.runs()[0]
    client = demo.client()
    assert run.info.status == "FINISHED"
    assert run.data.params["model.model_type"] == "resnet"
    assert run.data.params["train.learning_rate"] == "0.003"
    assert run.data.params["costs.preset"] == "absolute_difference"
    assert "model.convnext.depths" not in run.data.params
    assert run.data.metrics["test/accuracy"] == _metrics(demo)["test"]["accuracy"]
    epochs = client.get_metric_history(run.info.run_id, "training/validation_log_loss")
    assert [point.step for point in epochs] == list(range(1, 16))
    commit = demo.run("git", "rev-parse", "HEAD").stdout.strip()
    assert run.data.tags["mlflow.source.git.commit"] == commit
    digest = json.loads((demo.root / "data/prepared/dataset.json").read_text())["digest"]
    assert {i.dataset.digest for i in run.inputs.dataset_inputs} == {digest[:32]}
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id, "evaluation/test")}
    assert {"evaluation/test/confusion_matrix.png", "evaluation/test/confusion_matrix.json"} <= artifacts
    data = {item.path for item in client.list_artifacts(run.info.run_id, "data/prepared")}
    assert data == {"data/prepared/data_report.html"}
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"model", "training", "params.yaml"}


def test_no_pickle_is_written(demo):
    demo.wait_for_senders()
    checked = 0
    for folder, below, names in os.walk(demo.root):  # not rglob: a sender may still be deleting what it has logged
        below[:] = [name for name in below if name not in (".git", "cache")]
        for path in (Path(folder, name) for name in names):
            assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"), path
            checked += 1
    assert checked > 100


def test_decide_and_compare_as_in_the_readme(demo):
    assert demo.udc("decide").stdout.startswith("0 of 270 decisions change")
    cautious = demo.udc("decide", "-S", "costs.refer=0.2", "--out", "cautious").stdout
    assert "always refer" in cautious
    assert not cautious.startswith("0 of ")
    demo.udc("decide", "--sweep", "true=9,predicted=3,values=0:20:2")
    assert len((demo.root / "sweeps/cost_of_9_as_3.csv").read_text().splitlines()) == 12
    with_actions = demo.udc("decide", "-S", "costs.actions={retake: 0.3, biopsy: 0.6}", "--out", "with-actions").stdout
    assert "always retake" in with_actions
    assert "\nretake rate 0.0" in with_actions
    assert "biopsy rate 0.0000\n" in with_actions  # costs more than retake, whatever the class
    demo.udc("decide", "-S", "costs.actions={retake: 0.3}", "-S", "costs.actions.biopsy=0.6", "--sweep",
             "true=9,predicted=biopsy,values=0:2:0.5")  # fmt: skip
    assert len((demo.root / "sweeps/cost_of_9_as_biopsy.csv").read_text().splitlines()) == 6
    assert "per image, 95% interval" in demo.udc("compare", ".", "cautious").stdout


def test_summary_and_help(demo):
    summary = demo.udc("summary").stdout
    assert "resnet, best epoch" in summary
    assert f"{_metrics(demo)['test']['accuracy']:.4f}" in summary
    done = demo.run("python", "-X", "importtime", "-m", "udc_model.cli", "--help")
    assert not any(f"| {name}\n" in done.stderr for name in ("torch", "mlflow", "sklearn", "matplotlib", "pandas"))


def test_predict_files_folders_and_formats(demo, tmp_path):
    table = demo.udc("predict", "data/samples").stdout.splitlines()
    assert len(table) == 11
    right = sum(line.split()[1] == str(digit) for digit, line in enumerate(table[1:]))
    assert right >= 9  # one of the ten, a nine, is ambiguous
    rows = json.loads(demo.udc("predict", "--json", "data/samples/7.png").stdout)
    assert rows[0]["class"] == "7"
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1)
    header = demo.udc("predict", "--csv", "data/samples").stdout.splitlines()[0]
    assert header == "path,class,expected_cost," + ",".join(f"p_{d}" for d in range(10)) + ",familiarity,unfamiliar"
    (tmp_path / "bad.png").write_text("not an image")
    done = demo.udc("predict", str(tmp_path / "bad.png"), "data/samples/3.png", check=False)
    assert done.returncode == 1
    assert "data/samples/3.png" in done.stdout  # the other images are decided
    assert "bad.png: not an image" in done.stderr


def test_predict_agrees_with_the_predictions_table(demo, tmp_path):
    from sklearn.datasets import load_digits

    table = pd.read_csv(demo.root / "evaluation/test/predictions.csv", dtype={"predicted": str}).set_index("path")
    pixels = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    for path in table.index:
        Image.fromarray(pixels[int(path[7:11])]).save(tmp_path / path.rpartition("/")[2])
    rows = json.loads(demo.udc("predict", "--json", str(tmp_path)).stdout)
    assert len(rows) == len(table)
    for row in rows:
        expected = table.loc[f"digits/{row['path'].rpartition('/')[2]}"]
        assert row["class"] == expected["predicted"]
        assert row["expected_cost"] == pytest.approx(expected["expected_cost"], abs=1e-5)


def _logged_model(project):
    import mlflow

    client = project.client()
    run = project.runs()[0]
    models = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'")
    assert len(models) == 1
    return mlflow, models[0].model_uri


def test_pyfunc_accepts_arrays_and_base64(demo):
    mlflow, uri = _logged_model(demo)
    model = mlflow.pyfunc.load_model(uri)
    assert model.metadata.signature is not None
    logged = Path(mlflow.artifacts.download_artifacts(uri)) / "data/classifier/README.md"
    assert logged.read_bytes() == (demo.root / "evaluation/README.md").read_bytes()
    raw = (demo.root / "data/samples/4.png").read_bytes()
    pixels = np.asarray(Image.open(io.BytesIO(raw))).tolist()
    out = model.predict(pd.DataFrame({"image": [base64.b64encode(raw).decode(), pixels]}))
    assert out["class"].tolist() == ["4", "4"]
    assert out["expected_cost"][0] == pytest.approx(out["expected_cost"][1])
    assert out["probabilities"][0]["4"] > 0.5


def test_served_model_decides_as_predict(demo, free_port):
    _, uri = _logged_model(demo)
    address = f"http://127.0.0.1:{free_port}"
    command = ("mlflow", "models", "serve", "--env-manager", "local", "-m", uri, "-p", str(free_port))
    files = sorted((demo.root / "data/samples").glob("*.png"))
    records = [{"image": base64.b64encode(path.read_bytes()).decode()} for path in files]
    request = urllib.request.Request(
        f"{address}/invocations",
        data=json.dumps({"dataframe_records": records}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with (
        demo.server(*command, ready=f"{address}/ping"),
        urllib.request.urlopen(request, timeout=60) as response,
    ):
        served = json.load(response)["predictions"]
    predicted = json.loads(demo.udc("predict", "--json", "data/samples").stdout)
    assert [row["class"] for row in served] == [row["class"] for row in predicted]
    for served_row, row in zip(served, predicted, strict=True):
        assert served_row["expected_cost"] == pytest.approx(row["expected_cost"], abs=1e-6)


def test_train_py_with_a_json_config(demo):
    done = demo.run("python", "train.py", "--config", "config/convnext_example.json")
    assert "results: results/convnext_example" in done.stderr
    folder = demo.root / "results/convnext_example"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] >= 0.97
    assert json.loads((folder / "model/config.json").read_text())["model_type"] == "convnext"
    weights = (demo.root / "model/model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == demo.runs()[0].data.tags["mlflow.udc.model_sha256"]  # untouched
    done = demo.udc("predict", "--json", "--root", "results/convnext_example", "data/samples/1.png")
    assert json.loads(done.stdout)[0]["class"] == "1"
