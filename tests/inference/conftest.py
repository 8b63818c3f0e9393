"""Fixtures of inference: a workspace with a tiny model of random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.files import Workspace
from udc_model.models import build_model

CLASSES = ["a", "b"]


@pytest.fixture
def tiny_workspace():
    """A function that writes a model with random weights, these settings and a policy into a folder."""
    return _workspace


def _workspace(folder, decoding=None, **policy):
    workspace = Workspace(folder)
    workspace.model.mkdir(parents=True)
    workspace.evaluation.mkdir()
    model = build_model(
        ModelParams(resnet=ResNetParams(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")), CLASSES, 0
    )
    with torch.no_grad():
        model.classifier[1].weight.mul_(20)  # so that images differ in their costs
    model.save_pretrained(workspace.model)
    replace(Preprocessing(8, "squash"), decoding=decoding or Decoding()).save(workspace.model)
    text = Policy(CLASSES, (1 - np.eye(2)).tolist(), **policy).to_json()
    (workspace.evaluation / "policy.json").write_text(text)
    return workspace
