"""Training on shards: the bits of a training run on raw arrays, also after an interruption."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from udc_model.config import DataParams, LossParams, ModelParams, Params, ResNetParams, TrainParams
from udc_model.data.packed import PackedDataset
from udc_model.files import Workspace
from udc_model.models import build_model
from udc_model.stages.prepare import prepare
from udc_model.training import loop
from udc_model.training.checkpoints import CHECKPOINTS, open_checkpoints
from udc_model.training.hardware import pick_hardware
from udc_model.training.members import member_params, train_members, trained_model
from udc_model.training.session import TrainingSession
from udc_model.training.training_loss import TrainingLoss

MODEL = ModelParams(resnet=ResNetParams(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))
TRAIN = {"epochs": 2, "batch_size": 16, "augment": "standard", "horizontal_flip": True, "checkpoint_minutes": 1e-9,
         "loader_workers": 1, "device": "cpu", "precision": "fp32"}  # fmt: skip


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The same images as arrays of pixels and as shards, by the value of data.packed."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(90):
        coarse = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        path = root / "raw" / "abc"[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((20, 16) if number % 2 else (50, 40)).save(path)
    opened = {}
    for packed in ("raw", "shards"):
        data = DataParams(source="folder", path=str(root / "raw"), image_size=16, packed=packed)
        prepare(Params(data=data), (workspace := Workspace(root / f"as-{packed}")))
        opened[packed] = PackedDataset.open(workspace.prepared)
    return opened


def _train(root, dataset, packed):
    """Start or resume a training run; the hash of its weights."""
    params = TrainParams(**TRAIN)

    def session_of(number):
        member = member_params(Params(train=params, seed=1), number)
        loss_fn = TrainingLoss(LossParams(name="cross_entropy"), torch.ones(3, 3) - torch.eye(3), [18, 18, 18])
        return TrainingSession(build_model(MODEL, dataset.classes, member.seed), loss_fn, dataset.split("train"),
                               dataset.split("validation"), dataset.preprocessing, member,
                               pick_hardware(params))  # fmt: skip

    with open_checkpoints(root, {"packed": packed}, params.checkpoint_minutes) as folder:
        results = train_members(session_of, params.members, folder, lambda record: False)
    tensors = trained_model(build_model(MODEL, dataset.classes, 1), results).state_dict()
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values())).hexdigest()


def test_weights_are_those_of_raw_arrays_also_after_an_interruption(datasets, tmp_path, monkeypatch):
    expected = _train(tmp_path / "raw", datasets["raw"], "raw")
    assert _train(tmp_path / "undisturbed", datasets["shards"], "shards") == expected
    step, count = loop.train_step, [0]

    def interrupted_step(*arguments):
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "resumed", datasets["shards"], "shards")
    assert list((tmp_path / "resumed" / CHECKPOINTS).glob("*/*.safetensors"))
    assert _train(tmp_path / "resumed", datasets["shards"], "shards") == expected
