"""An ensemble through the real commands: one run, one model folder, one export, and equal decisions everywhere."""

import base64
import csv
import io
import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from udc_model.data.decode import decode
from udc_model.files import Workspace
from udc_model.inference.stored_model import open_stored

pytestmark = pytest.mark.pipeline

MEMBERS, EPOCHS = 3, 2


def test_an_ensemble_is_one_run_and_one_model_that_decides_equally_everywhere(small_project):
    project = small_project(train={"epochs": EPOCHS, "batch_size": 12})
    project.run("udc", "run", "--name", "five", "-S", f"train.members={MEMBERS}")
    (run,) = project.runs()
    assert (run.info.status, run.data.params["train.members"]) == ("FINISHED", str(MEMBERS))
    assert run.data.metrics["training/epochs"] == MEMBERS * EPOCHS
    assert len(run.data.metrics) <= 40
    points = project.client().get_metric_history(run.info.run_id, "training/validation_log_loss")
    assert sorted(point.step for point in points) == list(range(1, MEMBERS * EPOCHS + 1))
    curves = pd.read_csv(project.root / "training/curves.csv")
    assert curves["member"].tolist() == [1, 1, 2, 2, 3, 3]
    assert curves["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    record = json.loads((project.root / "training/record.json").read_text())
    assert curves["validation_log_loss"].idxmin() == record["best_epoch"] - 1
    best = curves.groupby("member")["validation_log_loss"].agg(lambda losses: losses.argmin() + 1).tolist()
    assert [member["best_epoch"] for member in record["members"]] == best
    config = json.loads((project.root / "model/config.json").read_text())
    assert config["temperatures"] == [member["temperature"] for member in record["members"]]
    report = (project.root / "evaluation/report.html").read_text(encoding="utf-8")
    assert f"Of the {MEMBERS} networks, the epochs {', '.join(map(str, best))} were selected" in report
    assert f"ensemble of {MEMBERS} resnet, best epochs {', '.join(map(str, best))}" in project.udc("summary").stdout
    card = (project.root / "evaluation/README.md").read_text(encoding="utf-8")
    assert f"An ensemble of {MEMBERS} networks; of them the epochs {', '.join(map(str, best))} were selected by" in card
    _check_decisions(project, run)


def _check_decisions(project, run):
    """Those of evaluate, predict, the served model and the ONNX file."""
    import mlflow

    table = pd.read_csv(project.root / "evaluation/test/predictions.csv").set_index("path")
    files = [project.root / "data/raw/shapes" / name for name in table.index]
    predicted = list(csv.DictReader(io.StringIO(project.udc("predict", "--csv", *map(str, files)).stdout)))
    served = mlflow.pyfunc.load_model(f"models:/{run.outputs.model_outputs[0].model_id}").predict(
        pd.DataFrame({"image": [base64.b64encode(path.read_bytes()).decode() for path in files]})
    )
    project.udc("export", "--input", "pixel_values", "model.onnx")
    stored = open_stored(Workspace(project.root))
    ours, inputs = stored.load(), []
    ours.model.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].numpy()))
    images = [stored.preprocessing.to_stored(decode(path, stored.preprocessing.decoding)) for path in files]
    ours.logits_of_stored(np.stack(images))
    session = onnxruntime.InferenceSession(project.root / "model.onnx")
    decided, logits = session.run(["decision", "logits"], {"pixel_values": inputs[0]})
    exported = [stored.policy.outcomes[k] for k in decided]
    assert table["predicted"].tolist() == [row["class"] for row in predicted] == served["class"].tolist() == exported
    for costs in ([float(row["expected_cost"]) for row in predicted], served["expected_cost"].tolist()):
        assert costs == pytest.approx(table["expected_cost"].tolist(), abs=1e-5)
    np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1, rtol=1e-5)
