"""Tests of the models against transformers with shared random weights: logits, hidden states, loss, gradients."""

import pytest
import torch
import transformers

from udc_model.config.presets import PRESETS
from udc_model.models import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

# The largest model differs from the next smaller one in its widths only; only the shapes of its weights are compared.
LARGEST = "convnext-xlarge"
CONVNEXT = {
    name: preset.settings
    for name, preset in PRESETS.items()
    if preset.model_type == "convnext" and name != LARGEST
} | {
    "three stages, patch 2": {"num_stages": 3, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "patch_size": 2},
    "no layer scale, one channel": {
        "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_scale_init_value": 0.0, "num_channels": 1,
    },
    "relu, same sizes": {"num_stages": 2, "hidden_sizes": [8, 8], "depths": [2, 1], "hidden_act": "relu"},
}  # fmt: skip
RESNET = {name: preset.settings for name, preset in PRESETS.items() if preset.model_type == "resnet"} | {
    "basic, both flags": {
        "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1],
        "downsample_in_first_stage": True, "downsample_in_bottleneck": True,
    },
    "bottleneck, both flags": {
        "embedding_size": 8, "hidden_sizes": [16, 32, 64], "depths": [1, 2, 1], "hidden_act": "gelu",
        "downsample_in_first_stage": True, "downsample_in_bottleneck": True, "num_channels": 1,
    },
}  # fmt: skip
PAIRS = {
    "convnext": (ConvNextConfig, ConvNextForImageClassification, transformers.ConvNextConfig,
                 transformers.ConvNextForImageClassification),
    "resnet": (ResNetConfig, ResNetForImageClassification, transformers.ResNetConfig,
               transformers.ResNetForImageClassification),
}  # fmt: skip
LARGE = ("convnext-small", "convnext-base", "convnext-large", "resnet-101", "resnet-152")
CASES = [
    pytest.param(kind, name, settings, marks=[pytest.mark.slow] if name in LARGE else [])
    for kind, cases in (("convnext", CONVNEXT), ("resnet", RESNET))
    for name, settings in cases.items()
]


def _pair(kind, settings):
    config, model, their_config, their_model = PAIRS[kind]
    with torch.device("meta"):  # the initialisation of large models takes longer than the comparison
        theirs = their_model(their_config(num_labels=5, **settings))
        ours = model(config(num_labels=5, **settings))
    theirs, ours = (network.to_empty(device="cpu").train() for network in (theirs, ours))
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.1)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("kind", "name", "settings"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_outputs_and_gradients_equal_those_of_transformers(kind, name, settings):
    torch.manual_seed(0)
    ours, theirs = _pair(kind, settings)
    side = 64 if len(settings["depths"]) < 4 else 32  # published models are large enough
    images = torch.randn(4, settings.get("num_channels", 3), side, side)
    labels = torch.tensor([0, 1, 4, 2])
    output = ours(images, labels=labels, output_hidden_states=True)
    expected = theirs(pixel_values=images, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-5)
    assert len(output.hidden_states) == len(expected.hidden_states)
    for state, reference in zip(output.hidden_states, expected.hidden_states, strict=True):
        scale = max(1.0, float(reference.detach().abs().max()))
        torch.testing.assert_close(state, reference, rtol=1e-5, atol=1e-5 * scale)
    output.loss.backward()
    expected.loss.backward()
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        error = (parameter.grad - gradients[key]).norm() / gradients[key].norm().clamp(min=1e-6)
        assert error < 1e-4, f"{key}: {error}"


def test_largest_model_has_the_weights_of_transformers():
    config, model, their_config, their_model = PAIRS["convnext"]
    settings = PRESETS[LARGEST].settings
    with torch.device("meta"):
        ours = model(config(num_labels=5, **settings)).state_dict()
        theirs = their_model(their_config(num_labels=5, **settings)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_initialisation_has_the_statistics_of_transformers(kind):
    config, model, their_config, their_model = PAIRS[kind]
    settings = PRESETS[f"{kind}-mini"].settings
    weights: list[dict[str, list[torch.Tensor]]] = [{}, {}]
    for seed in range(5):
        torch.manual_seed(seed)
        models = model(config(**settings)), their_model(their_config(**settings))
        for values, initialised in zip(weights, models, strict=True):
            for key, value in initialised.state_dict().items():
                if value.is_floating_point():
                    values.setdefault(key, []).append(value.flatten())
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        ours, theirs = (torch.cat(values[key]) for values in weights)
        # tolerance: four standard errors of a standard deviation, six of a mean
        assert abs(ours.std() - theirs.std()) <= 4 * theirs.std() * (2 * len(theirs)) ** -0.5 + 1e-7, key
        assert abs(ours.mean() - theirs.mean()) <= 6 * theirs.std() * len(theirs) ** -0.5 + 1e-7, key


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_folders_can_be_exchanged_with_transformers(kind, tmp_path):
    torch.manual_seed(0)
    config, model, their_config, their_model = PAIRS[kind]
    settings = PRESETS[f"{kind}-mini"].settings
    names = {0: "bar", 1: "dot", 2: "stripe"}
    images = torch.randn(2, 3, 32, 32)

    ours = model(config(id2label=names, **settings)).eval()
    (tmp_path / "ours").mkdir()
    ours.save_pretrained(tmp_path / "ours")
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(ours(images).logits, loaded(images).logits, rtol=1e-5, atol=1e-5)
    assert loaded.config.id2label == names
    assert loaded.config.label2id == {"bar": 0, "dot": 1, "stripe": 2}

    theirs = their_model(their_config(id2label=names, label2id={v: k for k, v in names.items()}, **settings)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = model.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(loaded(images).logits, theirs(images).logits, rtol=1e-5, atol=1e-5)
    assert loaded.config.id2label == names


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_save_load_save_gives_the_same_bytes(kind, tmp_path):
    config, model, _, _ = PAIRS[kind]
    settings = PRESETS[f"{kind}-mini"].settings
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    model(config(num_labels=3, **settings)).save_pretrained(tmp_path / "first")
    model.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
