"""Fixtures of inference: a workspace with a tiny model of random weights."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.policy import Policy
from udc_model.files import Workspace
from udc_model.inference import scoring, scoring_inputs
from udc_model.inference.feature_statistics import FAMILIARITY_FILE, FeatureStatistics
from udc_model.inference.stored_model import open_stored
from udc_model.models import build_model

CLASSES = ["a", "b"]


@pytest.fixture
def tiny_workspace():
    """A function that writes a model with random weights, these settings and a policy into a folder."""
    return _workspace


@pytest.fixture
def scoring_folder(tmp_path, monkeypatch, tiny_workspace):
    """A function that makes a folder with a model that can refer the current one; parts have ``part_size`` inputs."""

    def create(part_size):
        monkeypatch.chdir(tmp_path)
        for module in (scoring_inputs, scoring):
            monkeypatch.setattr(module, "PART_SIZE", part_size)
        tiny_workspace(tmp_path, refer=0.2)
        return tmp_path

    return create


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


@pytest.fixture
def add_familiarity():
    """A function that gives a workspace's policy a familiarity, fitted on images (N, S, S, C) and calibrated on others.

    It returns the distances of the latter.
    """
    return _with_familiarity


def _with_familiarity(workspace, references, calibration, unfamiliar="warn", level=0.01):
    stored = open_stored(workspace)
    classifier = stored.load()
    statistics = FeatureStatistics.fit(classifier.features_of_stored(references))
    (workspace.evaluation / FAMILIARITY_FILE).write_bytes(contents := statistics.to_bytes())
    classifier.use_statistics(statistics)
    distances = classifier.outputs_of_stored(calibration).distances
    digest = hashlib.sha256(contents).hexdigest()
    familiarity = Familiarity.fit(digest, statistics.centre.shape, distances, None, unfamiliar)
    policy = replace(stored.policy, familiarity=replace(familiarity, level=level))
    (workspace.evaluation / "policy.json").write_text(policy.to_json())
    return distances
