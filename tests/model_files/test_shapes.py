"""Tests of the computed names and shapes of weights against those of the networks."""

import json

import pytest
import torch

from udc_model.config.presets import PRESETS
from udc_model.config.train import MAX_MEMBERS
from udc_model.model_files.settings import check_settings
from udc_model.model_files.shapes import expected_shapes
from udc_model.model_files.weights import _MAX_HEADER
from udc_model.models import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Ensemble,
    EnsembleConfig,
    ResNetConfig,
    ResNetForImageClassification,
)

KINDS = {
    "resnet": (ResNetConfig, ResNetForImageClassification),
    "convnext": (ConvNextConfig, ConvNextForImageClassification),
}
SMALL = {"embedding_size": 8, "hidden_sizes": [8, 8, 16], "depths": [2, 1, 2]}
VARIANTS = [
    ("resnet", SMALL | {"layer_type": "basic"}),
    ("resnet", SMALL | {"layer_type": "basic", "downsample_in_first_stage": True}),
    ("resnet", SMALL | {"layer_type": "bottleneck", "downsample_in_bottleneck": True}),
    ("resnet", SMALL | {"layer_type": "bottleneck", "num_channels": 1, "embedding_size": 16}),
    ("convnext", {"num_stages": 2, "hidden_sizes": [8, 8], "depths": [1, 2], "patch_size": 2, "num_channels": 1}),
    ("convnext", {"num_stages": 1, "hidden_sizes": [8], "depths": [2], "layer_scale_init_value": 0.0}),
    ("convnext", {"num_stages": 2, "hidden_sizes": [16, 8], "depths": [1, 1], "hidden_act": "relu"}),
]


@pytest.mark.parametrize(
    ("model_type", "settings"), [*((each.model_type, each.settings) for each in PRESETS.values()), *VARIANTS]
)
@pytest.mark.parametrize("classes", [2, 5])
def test_shapes_are_those_of_the_network(model_type, settings, classes):
    config_class, model_class = KINDS[model_type]
    with torch.device("meta"):
        model = model_class(config_class(num_labels=classes, **settings))
    stored = json.loads(json.dumps(model.config.to_dict()))
    shapes = list(expected_shapes(check_settings(stored, "config.json", "")))
    assert len(dict(shapes)) == len(shapes)
    assert dict(shapes) == {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("model_type", KINDS)
def test_shapes_of_an_ensemble_are_those_of_each_member(model_type):
    settings = next(settings for kind, settings in VARIANTS if kind == model_type)
    with torch.device("meta"):
        model = Ensemble(EnsembleConfig(KINDS[model_type][0](num_labels=4, **settings), [1.0, 0.5, 2.0]))
    shapes = list(expected_shapes(check_settings(model.config.to_dict(), "config.json", "")))
    assert len(dict(shapes)) == len(shapes)
    assert dict(shapes) == {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_header_of_the_largest_ensemble_is_read():
    """20 times ConvNeXt-xlarge and ResNet-152."""
    for preset in ("convnext-xlarge", "resnet-152"):
        config = KINDS[PRESETS[preset].model_type][0](**PRESETS[preset].settings)
        settings = EnsembleConfig(config, [1.0] * MAX_MEMBERS).to_dict()
        entries = {name: {"dtype": "F32", "shape": shape, "data_offsets": [10**11, 10**11]}
                   for name, shape in expected_shapes(check_settings(settings, "config.json", ""))}  # fmt: skip
        assert len(json.dumps(entries)) < _MAX_HEADER
