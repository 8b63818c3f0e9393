"""An ensemble gives the logarithm of the mean of its members' calibrated probabilities, and is a model folder."""

import json

import numpy as np
import pytest
import torch
import transformers
from scipy.special import softmax

from udc_model.model_files.folder import ModelFolder
from udc_model.models import ConvNextConfig, Ensemble, ResNetConfig, load_model
from udc_model.models.ensemble import CLASSIFIERS

NAMES = {0: "a", 1: "b", 2: "ç"}
CONFIGS = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=NAMES),
    "convnext": ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], drop_path_rate=0.2, num_channels=1,
                               id2label=NAMES),
}  # fmt: skip
TEMPERATURES = [0.5, 1.7, 3.0]


def _members(kind):
    for seed in range(len(TEMPERATURES)):
        torch.manual_seed(seed)
        model = CLASSIFIERS[kind](CONFIGS[kind])
        torch.nn.init.normal_(list(model.parameters())[-2], std=3.0)  # confident ones
        yield model.eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_the_logarithm_of_the_mean_probability(kind):
    members = list(_members(kind))
    ensemble = Ensemble.of_members(members[0].config, TEMPERATURES, [member.state_dict() for member in members])
    images = torch.randn(5, CONFIGS[kind].num_channels, 32, 32)
    with torch.inference_mode():
        parts = [softmax(member(images).logits.double().numpy() / temperature, axis=1)
                 for member, temperature in zip(members, TEMPERATURES, strict=True)]  # fmt: skip
        logits = ensemble(images).logits
    assert not ensemble.training
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.double().exp().numpy(), np.mean(parts, axis=0), rtol=1e-5)


def test_sure_members_give_finite_logits():
    """A probability that underflows in each member."""
    members = list(_members("resnet"))
    for member in members:
        torch.nn.init.constant_(member.classifier[1].bias, 0.0)
        with torch.no_grad():
            member.classifier[1].bias[0] = 1e4
    ensemble = Ensemble.of_members(members[0].config, TEMPERATURES, [member.state_dict() for member in members])
    logits = ensemble(torch.zeros(1, 3, 32, 32)).logits[0].tolist()
    assert logits[0] == pytest.approx(0.0, abs=1e-6)
    assert -1e5 < logits[1] < -1e3


@pytest.mark.parametrize("kind", CONFIGS)
def test_folder_is_that_of_a_model(kind, tmp_path):
    members = list(_members(kind))
    ensemble = Ensemble.of_members(members[0].config, TEMPERATURES, [member.state_dict() for member in members])
    ensemble.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert settings == members[0].config.to_dict() | {
        "model_type": "ensemble", "architectures": ["Ensemble"], "member_type": kind, "temperatures": TEMPERATURES,
    }  # fmt: skip
    stored, loaded = ModelFolder.open(tmp_path), load_model(tmp_path)
    assert stored.classes == list(NAMES.values())
    assert loaded.config.to_dict() == settings
    assert (loaded.config.num_labels, loaded.config.num_channels) == (3, CONFIGS[kind].num_channels)
    images = torch.randn(2, CONFIGS[kind].num_channels, 32, 32)
    assert torch.equal(loaded(images).logits, ensemble(images).logits)
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == stored.weights


def test_transformers_refuses_an_ensemble(tmp_path):
    """With the model type of its members it would load a network of random weights."""
    members = list(_members("resnet"))
    Ensemble.of_members(members[0].config, [1.0] * 3, [m.state_dict() for m in members]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ensemble"):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
