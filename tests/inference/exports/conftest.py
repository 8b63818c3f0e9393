"""A workspace with a model, its policy and prepared images, small enough to export in a second."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from udc_model.config import ConvNextParams, ModelParams, ResNetParams
from udc_model.data.packed import PackedDataset, write_packed
from udc_model.data.scratch import PixelScratch
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.calibration import Calibration
from udc_model.decisions.policy import Policy
from udc_model.files import Workspace, sha256_of
from udc_model.models import build_model, load_model

CLASSES = ["a", "b", "ç"]
SIZE = 14
TINY = {
    "resnet": ModelParams(resnet=ResNetParams(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")),
    "convnext": ModelParams(
        model_type="convnext", convnext=ConvNextParams(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    ),
}


def make_workspace(root, kind="resnet", images_per_split=40, **policy):
    """Images of three brightnesses with noise, and a network with random weights whose decisions differ."""
    rng, workspace = np.random.default_rng(0), Workspace(root)
    for folder in (workspace.model, workspace.evaluation, workspace.prepared):
        folder.mkdir(parents=True)
    labels = np.arange(2 * images_per_split) % len(CLASSES)
    images = rng.normal(60 + 60 * labels[:, None, None, None], 50, (len(labels), 16, 16, 3)).clip(0, 255)
    (root / "scratch").write_bytes(images.astype(np.uint8).tobytes())
    constants = {"group": "", "width": 16, "height": 16, "sha256": "0" * 64}
    rows = [
        {"split": split, "path": f"{split}/{row}.png", "label": CLASSES[labels[row]], "scratch_row": row, **constants}
        for split, start in (("calibration", 0), ("test", images_per_split), ("train", 0))
        for row in range(start, start + images_per_split)
    ]
    write_packed(
        workspace.prepared,
        PixelScratch(root / "scratch"),
        rows,
        Preprocessing(SIZE, crop_pct=0.875),
        {"classes": CLASSES},
    )
    model = build_model(TINY[kind], CLASSES, 0)
    dataset = PackedDataset.open(workspace.prepared)
    head = model.classifier[1] if kind == "resnet" else model.classifier
    with torch.no_grad():  # so that all decisions occur
        logits = model.eval()(
            dataset.preprocessing.to_input(torch.tensor(np.array(dataset.split("test").images)))
        ).logits
        head.weight.mul_(3 / logits.std(dim=0)[:, None])
        head.bias.sub_(logits.mean(dim=0)).mul_(3 / logits.std(dim=0))
    model.save_pretrained(workspace.model)
    dataset.preprocessing.save(workspace.model)
    digest = sha256_of(workspace.model / "model.safetensors")
    settings = {"refer": 0.4, "calibration": Calibration("temperature", {"temperature": 1.3}), "model_sha256": digest}
    stored = Policy(CLASSES, [[0, 1, 2], [1, 0, 1], [5, 1, 0]], **settings | policy)
    (workspace.evaluation / "policy.json").write_text(stored.to_json())
    return workspace


@pytest.fixture
def workspace(tmp_path):
    return make_workspace(tmp_path / "work")


@pytest.fixture
def workspace_of(tmp_path):
    """A function from ``resnet`` or ``convnext`` to such a workspace."""
    return lambda kind: make_workspace(tmp_path / "work", kind)


@pytest.fixture
def with_outliers():
    """A function that makes one channel of a workspace's ResNet 3,000 times as large, and weighs it so much less."""

    def change(workspace):
        model, factor = load_model(workspace.model), 3000.0
        layer = model.resnet.encoder.stages[0].layers[0].layer
        with torch.no_grad():
            for norm in (model.resnet.embedder.embedder.normalization, layer[1].normalization):
                norm.weight[0] *= factor
                norm.bias[0] *= factor
            for weight in (layer[0].convolution.weight, model.classifier[1].weight):
                weight[:, 0] /= factor
        model.save_pretrained(workspace.model)

    return change


@pytest.fixture
def set_policy():
    """A function that changes fields of a workspace's policy."""

    def change(workspace, **fields):
        path = workspace.evaluation / "policy.json"
        path.write_text(replace(Policy.load(path), **fields).to_json())

    return change
