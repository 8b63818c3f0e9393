"""Tests of the computed names and shapes of weights against those of the networks."""

import json

import pytest
import torch

from udc_model.config.presets import PRESETS
from udc_model.model_files.settings import check_settings
from udc_model.model_files.shapes import expected_shapes
from udc_model.models import ConvNextConfig, ConvNextForImageClassification, ResNetConfig, ResNetForImageClassification

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
