"""Tests of outputs, losses by problem type, activations and norms against transformers."""

from typing import get_args

import pytest
import torch
import transformers
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention as TheirOutput

from udc_model.config.model import Activation
from udc_model.models import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextLayerNorm,
    ConvNextModel,
    ImageClassifierOutputWithNoAttention,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)
from udc_model.models.activations import ACTIVATIONS, activation

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONVNEXT = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def _pair(kind, **settings):
    torch.manual_seed(0)
    if kind == "convnext":
        ours = ConvNextForImageClassification(ConvNextConfig(**CONVNEXT, **settings))
        theirs = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**CONVNEXT, **settings))
    else:
        ours = ResNetForImageClassification(ResNetConfig(**RESNET, **settings))
        theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET, **settings))
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("output_type", [ImageClassifierOutputWithNoAttention, TheirOutput])
def test_outputs_are_objects_mappings_and_tuples(output_type):
    logits, loss = torch.ones(2, 3), torch.tensor(0.5)
    output = output_type(logits=logits)
    assert output.loss is None
    assert output["logits"] is output.logits is output[0] is logits
    assert list(output) == list(output.keys()) == ["logits"]
    assert "loss" not in output
    assert len(output) == 1
    assert output.to_tuple() == (logits,)
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(IndexError):
        output[1]
    full = output_type(loss=loss, logits=logits, hidden_states=(logits,))
    assert full[:2] == (loss, logits)
    full.loss = torch.tensor(2.0)
    assert full["loss"].item() == full[0].item() == 2.0
    full["loss"] = torch.tensor(3.0)
    assert full.loss.item() == 3.0


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_return_dict_and_hidden_states_follow_transformers(kind):
    ours, theirs = _pair(kind, num_labels=3)
    labels = torch.tensor([0, 1, 2, 0])
    for options in (
        {}, {"labels": labels}, {"output_hidden_states": True}, {"labels": labels, "output_hidden_states": True},
    ):  # fmt: skip
        output = ours(IMAGES, **options, return_dict=False)
        assert isinstance(output, tuple)
        assert len(output) == len(theirs(IMAGES, **options, return_dict=False))
        assert list(ours(IMAGES, **options)) == list(theirs(IMAGES, **options))
    ours.config.output_hidden_states, ours.config.return_dict = True, False
    assert len(ours(IMAGES)) == 2


@pytest.mark.parametrize(("ours", "theirs", "kind"), [(ConvNextModel, transformers.ConvNextModel, "convnext"),
                                                      (ResNetModel, transformers.ResNetModel, "resnet")])  # fmt: skip
def test_models_without_head_equal_those_of_transformers(ours, theirs, kind):
    classifier, reference = _pair(kind)
    output, expected = classifier.base_model(IMAGES), getattr(reference, kind)(IMAGES)
    assert isinstance(classifier.base_model, ours)
    assert isinstance(getattr(reference, kind), theirs)
    assert list(output) == list(expected)
    torch.testing.assert_close(output.pooler_output, expected.pooler_output)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
@pytest.mark.parametrize(
    ("problem", "num_labels", "labels"),
    [
        ("single_label_classification", 3, torch.tensor([0, 2, 1, 1])),
        ("multi_label_classification", 3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])),
        ("regression", 1, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        ("regression", 2, torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, 2.0], [0.0, 1.0]])),
        (None, 3, torch.tensor([0, 2, 1, 1])),
    ],
)
def test_losses_by_problem_type_equal_those_of_transformers(kind, problem, num_labels, labels):
    ours, theirs = _pair(kind, num_labels=num_labels, problem_type=problem)
    torch.testing.assert_close(ours(IMAGES, labels=labels).loss, theirs(IMAGES, labels=labels).loss)


@pytest.mark.parametrize(("num_labels", "labels"), [(1, torch.tensor([0, 0, 0, 0])), (3, torch.rand(4, 3))])
def test_ambiguous_problem_type_raises(num_labels, labels):
    with pytest.raises(ValueError, match=r"set config\.problem_type"):
        _pair("resnet", num_labels=num_labels)[0](IMAGES, labels=labels)


def test_set_loss_replaces_the_built_in_loss():
    model, _ = _pair("convnext", num_labels=3)
    labels = torch.tensor([0, 2, 1, 1])
    model.set_loss(lambda logits, targets: (logits.sum(dim=1) * targets).sum())
    output = model(IMAGES, labels=labels)
    torch.testing.assert_close(output.loss, (output.logits.sum(dim=1) * labels).sum())


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) & set(ACT2FN)))
def test_activations_equal_those_of_transformers(name):
    x = torch.cat([torch.linspace(-15, 15, 301), torch.randn(1000, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(activation(name)(x), ACT2FN[name](x), rtol=1e-5, atol=1e-5)


def test_unknown_activation_raises():
    with pytest.raises(ValueError, match=r"hidden_act: 'gellu' is unknown"):
        ConvNextForImageClassification(ConvNextConfig(**CONVNEXT, hidden_act="gellu"))


def test_parameter_hidden_act_lists_all_activations():
    assert set(get_args(Activation)) == set(ACTIVATIONS)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_layer_norm_equals_that_of_transformers(data_format):
    theirs = transformers.models.convnext.modeling_convnext.ConvNextLayerNorm(6, data_format=data_format)
    ours = ConvNextLayerNorm(6, data_format=data_format)
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.bias.normal_()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 5, 6) if data_format == "channels_last" else torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(ValueError, match="data_format"):
        ConvNextLayerNorm(6, data_format="NHWC")


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_images_with_other_channels_raise(kind):
    model, _ = _pair(kind)
    with pytest.raises(ValueError, match="got 1 channels, the model has num_channels = 3"):
        model(IMAGES[:, :1])
