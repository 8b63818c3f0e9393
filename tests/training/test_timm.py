"""Training networks of timm: frozen stages, resume, and the pipeline from images to decisions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from udc_model.config import LossParams, Params, validate_params
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.models import build_model, load_model
from udc_model.stages.evaluate import evaluate
from udc_model.stages.prepare import prepare
from udc_model.stages.resolve import resolve
from udc_model.stages.train import train
from udc_model.training.checkpoints import open_checkpoints
from udc_model.training.hardware import pick_hardware
from udc_model.training.members import train_members, trained_model
from udc_model.training.session import TrainingSession
from udc_model.training.training_loss import TrainingLoss

pytest.importorskip("timm")


@pytest.fixture
def prepared(shapes_folder, tmp_path, monkeypatch):
    """A function that returns resolved parameters of a workspace with prepared images."""
    monkeypatch.setenv("UDC_SENDER", "off")
    monkeypatch.chdir(tmp_path)
    data = {"source": "folder", "path": str(shapes_folder), "image_size": 32}
    info = prepare(Params(data=data), Workspace(tmp_path))

    def resolved(name="test_efficientnet", **options):
        sections = {
            "data": data, "costs": {"preset": "uniform"}, "model": {"model_type": "timm", "timm": {"name": name}},
            "train": {"epochs": 2, "batch_size": 12, "device": "cpu", "precision": "fp32", **options},
        }  # fmt: skip
        return resolve(validate_params(sections, "test"), info)

    return resolved


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"num_frozen_stages": 2, "layer_decay": 0.5}, {"members": 2}])
def test_the_pipeline_makes_decisions(prepared, options):
    resolved, workspace = prepared(ema_decay=0.9, **options), Workspace()
    train(resolved.train, workspace)
    evaluate(resolved.evaluate, workspace)
    record = json.loads((workspace.training / "record.json").read_text())
    assert record["params"]["model"]["timm"] == {"num_channels": 3, "name": "test_efficientnet", "drop_path_rate": 0.0}
    assert json.loads(Path("metrics.json").read_text())["test"]["accuracy"] >= 0
    names = [name for name, _ in load_model(workspace.model).named_parameters()]
    assert any(name.endswith("timm.network.conv_stem.weight") for name in names)


def test_only_the_head_of_a_frozen_network_is_trained(prepared):
    resolved, workspace = prepared(num_frozen_stages="all"), Workspace()
    train(resolved.train, workspace)
    before = build_model(resolved.train.model, ["bar", "dot", "stripe"], resolved.train.seed).state_dict()
    after = load_model(workspace.model).state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["classifier.weight", "classifier.bias"]


def test_an_interrupted_training_run_resumes_exactly(tmp_path):
    """With stochastic depth, whose draws the checkpoint must determine, and with averaged weights."""
    params = Params(
        seed=1,
        model={"model_type": "timm", "timm": {"name": "test_efficientnet", "drop_path_rate": 0.3}},
        train={"epochs": 3, "batch_size": 10, "device": "cpu", "precision": "fp32", "ema_decay": 0.9},
    )
    rng = np.random.default_rng(0)
    labels, images = np.arange(30) % 2, rng.integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)
    split = PackedSplit(images, labels, [f"{i}.png" for i in range(30)], [""] * 30, [""] * 30)

    def trained(name, stop_after):
        def on_epoch(record):
            if record.epoch == stop_after:
                raise KeyboardInterrupt
            return False

        model, loss_fn = (
            build_model(params.model, ["a", "b"], 1),
            TrainingLoss(LossParams(), 1 - torch.eye(2), [15, 15]),
        )
        hardware = pick_hardware(params.train)
        session = TrainingSession(model, loss_fn, split, split, Preprocessing(32), params, hardware)
        with open_checkpoints(tmp_path / name, {}, 1.0) as folder:
            results = train_members(lambda _: session, 1, folder, on_epoch)
        return trained_model(session.model, results).state_dict(), results[0].curves

    with pytest.raises(KeyboardInterrupt):
        trained("interrupted", 2)
    (resumed, curves), (expected, all_curves) = trained("interrupted", None), trained("complete", None)
    assert curves == all_curves
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)


def test_an_image_size_that_the_network_does_not_take_is_refused(prepared):
    with pytest.raises(UdcError, match=r"^data.image_size: is 32, but the timm cannot take such images \(Input height"):
        train(prepared("vit_tiny_patch16_224").train, Workspace())
