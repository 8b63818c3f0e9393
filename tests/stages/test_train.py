"""Stage ``train`` with a frozen network: stored features, and an ordinary model folder."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch

from udc_model.config import Params, override_params
from udc_model.data.margins import Margins
from udc_model.data.packed import PackedDataset
from udc_model.decisions.policy import Policy
from udc_model.evaluation.tables import logits_of, read_predictions
from udc_model.evaluation.training_record import read_seconds
from udc_model.files import Workspace, sha256_of
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.stored_model import open_stored
from udc_model.models import ResNetModel
from udc_model.models.factory import build_model
from udc_model.stages.evaluate import evaluate
from udc_model.stages.prepare import prepare
from udc_model.stages.resolve import resolve
from udc_model.stages.train import best_epoch_text, train
from udc_model.training.loop import TrainingResult
from udc_model.training.members import joint_result

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, shapes_folder, monkeypatch):
    """A function that prepares and trains in a workspace of its name, with weights from a folder; its record."""
    monkeypatch.setenv("UDC_SENDER", "off")
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights"
    weights.mkdir()
    build_model(override_params(["model.preset=resnet-mini"]).model, ["x", "y"], 0).save_pretrained(weights)

    def train_in(name: str, *settings: str) -> Workspace:
        params: Params = override_params(
            ["data.source=folder", f"data.path={shapes_folder}", "data.image_size=16", "costs.preset=uniform",
             "model.preset=resnet-mini", f"model.weights={weights}", "train.num_frozen_stages=all", "train.epochs=3",
             "train.batch_size=12", "train.device=cpu", "train.precision=fp32", *settings]
        )  # fmt: skip
        workspace = Workspace(tmp_path / name)
        train(resolve(params, prepare(params, workspace)).train, workspace)
        return workspace

    return train_in


@pytest.fixture
def passes(monkeypatch):
    """The number of images in each pass of the network below its head, without the check of its input size."""
    sizes, embed = [], ResNetModel.embed

    def counted(self, images):
        if not images.is_meta:
            sizes.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(ResNetModel, "embed", counted)
    return sizes


def test_second_training_run_reads_stored_features(run, passes, tmp_path, caplog):
    """With another learning rate and other costs; without the stored features the weights have the same bits."""
    caplog.set_level(logging.INFO)
    first = run("first")
    counts = PackedDataset.open(first.prepared).info["counts"]
    expected = sum(counts["train"].values()) + sum(counts["validation"].values())
    assert sum(passes) == expected
    assert len(list((tmp_path / ".udc/features").iterdir())) == 2
    passes.clear()
    changed = ("train.learning_rate=0.01", "loss.name=expected_cost", "train.members=2",
               "costs.preset=absolute_difference", "costs.order=[bar, dot, stripe]")  # fmt: skip
    second = run("second", *changed)
    assert passes == []
    assert caplog.messages.count("features of split train: stored by an earlier training run") == 2
    for path in (tmp_path / ".udc/features").glob("*/*"):
        path.unlink()
    third = run("third", *changed)
    assert sum(passes) == expected  # the second member finds the features of the first
    weights = [sha256_of(workspace.model / "model.safetensors") for workspace in (first, second, third)]
    assert weights[0] != weights[1] == weights[2]


def test_model_on_stored_features_is_an_ordinary_model(run):
    """Its folder has all weights, and its decisions on images are those of the training record."""
    workspace = run("one", "train.learning_rate=0.05", "train.epochs=20")
    model = TrainedClassifier.load(workspace.model)
    weights = torch.nn.Module.state_dict(model.model)
    assert {key.partition(".")[0] for key in weights} == {"resnet", "classifier"}
    split = PackedDataset.open(workspace.prepared).split("validation")
    logits = model.logits_of_stored(split.images, 4, "validation")
    record = json.loads((workspace.training / "record.json").read_text())["final_metrics"]
    assert np.mean(logits.argmax(axis=1) == split.labels) == record["validation_accuracy"]
    curves = pd.read_csv(workspace.training / "curves.csv")
    assert curves["train_loss"].iloc[-1] < curves["train_loss"].iloc[0]
    params = override_params(["costs.preset=uniform"])
    assert evaluate(params, workspace)["validation"]["argmax_accuracy"] == pytest.approx(record["validation_accuracy"])
    assert (workspace.training / "augmented.png").is_file()


def test_the_duration_of_the_training_run_is_stored_outside_of_its_outputs(run, tmp_path):
    workspace = run("timed", "train.epochs=1")
    assert read_seconds(tmp_path, sha256_of(workspace.model / "model.safetensors")) > 0
    assert "seconds" not in (workspace.training / "record.json").read_text()


def test_the_duration_of_an_ensemble_is_that_of_all_members():
    margins = Margins(*np.zeros((3, 1, 1)))
    results = [TrainingResult([{"epoch": 1}], 1, margins=margins, seconds=seconds) for seconds in (1.5, 2.0)]
    assert joint_result(results).seconds == 3.5


@pytest.mark.parametrize(("members", "text"), [
    ([(5, 5, 0.9)], "best epoch 5 of 5, the last: more may be better"),
    ([(4, 5, 0.9)], "best epoch 4 of 5"),
    ([(1, 1, 0.9)], "best epoch 1 of 1"),
    ([(3, 5, 0.8), (5, 5, 0.9)], "best epoch 10 of 10, the last of its member: more may be better"),
    ([(5, 5, 0.9), (3, 5, 0.8)], "best epoch 5 of 10, the last of its member: more may be better"),
    ([(3, 4, 0.8), (1, 3, 0.9)], "best epoch 5 of 7"),  # as many as train.epochs, but the first of its member
])  # fmt: skip
def test_the_last_epoch_is_that_of_the_best_member(members, text):
    results = [TrainingResult([{"epoch": number} for number in range(1, epochs + 1)], best, best_score=score,
                              margins=Margins(*np.zeros((3, 1, 1)))) for best, epochs, score in members]  # fmt: skip
    assert best_epoch_text(results) == text


def test_decisions_are_compared_with_fp32_and_predictions_are_in_the_precision_of_the_evaluation(run, caplog):
    caplog.set_level(logging.INFO)
    workspace = run("one", "train.learning_rate=0.05", "train.epochs=20")
    for setting, precision in (("auto", "fp32_fused"), ("bf16", "bf16"), ("fp32", "fp32")):
        caplog.clear()
        evaluate(override_params(["costs.preset=uniform", f"evaluate.precision={setting}"]), workspace)
        policy = Policy.load(workspace.evaluation)
        assert policy.precision == precision
        compared = [message for message in caplog.messages if message.startswith(f"precision {precision}: ")]
        assert len(compared) == (precision != "fp32")
        split = PackedDataset.open(workspace.prepared).split("test")
        expected = logits_of(read_predictions(workspace.evaluation / "test/predictions.csv"), policy.classes)
        logits = open_stored(workspace).load().logits_of_stored(split.images)
        assert np.array_equal(logits, expected)
