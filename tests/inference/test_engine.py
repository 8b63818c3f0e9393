"""Tests of the forward pass: fused and reduced precision compute the same as the model itself."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from udc_model.config import ConvNextParams, ModelParams, ResNetParams, TimmParams
from udc_model.data.transforms import Preprocessing
from udc_model.inference import engine
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.engine import build_forward
from udc_model.inference.fused import FusedConvolution, FusedLinear, has_fused_operators
from udc_model.models import build_model
from udc_model.models.ensemble import Ensemble

CPU = torch.device("cpu")
CLASSES = ["a", "b", "c"]
SIZES = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 1]}
MODELS = {
    "basic": ModelParams(resnet=ResNetParams(layer_type="basic", **SIZES)),
    "bottleneck": ModelParams(resnet=ResNetParams(layer_type="bottleneck", hidden_act="silu", **SIZES)),
    "convnext": ModelParams(
        model_type="convnext",
        convnext=ConvNextParams(num_stages=2, hidden_sizes=[16, 32], depths=[1, 2], layer_scale_init_value=0.5),
    ),
    "timm": ModelParams(model_type="timm", timm=TimmParams(name="resnet10t")),
}


def _randomised(params, seed=0):
    """A model whose norms have statistics, scales and biases that differ by channel."""
    model, generator = build_model(params, CLASSES, seed).eval(), torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 2),
                                      (module.weight.data, 0.5, 1.5), (module.bias.data, -1, 1)):  # fmt: skip
                values.copy_(low + (high - low) * torch.rand(len(values), generator=generator))
    return model


@pytest.fixture(params=[*MODELS, "ensemble"])
def model(request):
    if request.param != "ensemble":
        return _randomised(MODELS[request.param])
    members = [_randomised(MODELS["basic"], seed) for seed in (1, 2)]
    return Ensemble.of_members(members[0].config, [1.0, 2.0], [member.state_dict() for member in members])


@pytest.fixture(params=[True, False], ids=["operators of oneDNN", "operators of torch"])
def _operators(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(engine, "has_fused_operators", lambda device: False)
    elif not has_fused_operators(CPU):
        pytest.skip("this build of torch has no fused operators of oneDNN")


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _run(forward, images):
    with torch.inference_mode():
        return forward(images)


def test_fp32_computes_the_model_as_it_is(model, images):
    before = deepcopy(model.state_dict())
    expected = _run(lambda x: model(x).logits, images)
    assert torch.equal(_run(build_forward(model, CPU), images), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.usefixtures("_operators")
def test_fused_float32_differs_by_rounding_only(model, images):
    expected = _run(build_forward(deepcopy(model), CPU), images)
    torch.testing.assert_close(_run(build_forward(model, CPU, "fp32_fused"), images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_no_norm_remains_in_a_fused_resnet(name):
    model = _randomised(MODELS[name])
    build_forward(model, CPU, "fp32_fused")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.usefixtures("_operators")
def test_bf16_is_close_and_its_head_computes_in_float32(model, images, monkeypatch):
    if engine.has_fused_operators(CPU) and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this processor, on which build_forward computes in float32")
    monkeypatch.setattr(engine, "has_fast_bf16", lambda device: True)
    expected = _run(build_forward(deepcopy(model), CPU), images)
    logits = _run(build_forward(model, CPU, "bf16"), images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # not rounded to bfloat16
    spread = expected.std()
    assert 0 < (logits - expected).abs().max() < 0.1 * spread
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | FusedConvolution | FusedLinear)]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    heads = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(CLASSES)]
    assert heads
    assert {weight.dtype for weight in heads} == {torch.float32}


def test_the_size_of_the_batch_and_earlier_batches_change_rounding_only(model, images):
    """Weights are ordered when the first images come, and always for the same number of images."""
    expected = _run(lambda x: model(x).logits, images)
    forward = build_forward(model, CPU, "fp32_fused")
    for order in ([0], [1, 2, 3], [3, 2], [0, 1, 2, 3]):
        torch.testing.assert_close(_run(forward, images[order]), expected[order], rtol=1e-4, atol=1e-4)


def test_several_threads_may_begin_at_once(images):
    model = _randomised(MODELS["convnext"])
    expected = _run(build_forward(deepcopy(model), CPU, "fp32_fused"), images)
    for _ in range(5):
        forward = build_forward(deepcopy(model), CPU, "fp32_fused")
        with ThreadPoolExecutor(4) as pool:
            for logits in pool.map(lambda _, forward=forward: _run(forward, images), range(4)):
                assert torch.equal(logits, expected)


def test_hardware_that_emulates_bf16_computes_in_fused_float32(model, images, monkeypatch, caplog):
    monkeypatch.setattr(engine, "has_fast_bf16", lambda device: False)
    caplog.set_level("INFO")
    expected = _run(build_forward(deepcopy(model), CPU, "fp32_fused"), images)
    assert torch.equal(_run(build_forward(model, CPU, "bf16"), images), expected)
    assert "this processor only emulates bf16, so fp32 is used" in caplog.text


def test_classifier_uses_its_precision(rng):
    stored = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    models = [_randomised(MODELS["basic"]) for _ in range(2)]
    exact, fused = (TrainedClassifier(model, Preprocessing(16), CPU, precision=precision).logits_of_stored(stored, 2)
                    for model, precision in zip(models, ("fp32", "fp32_fused"), strict=True))  # fmt: skip
    assert not np.array_equal(exact, fused)
    np.testing.assert_allclose(exact, fused, rtol=1e-4, atol=1e-4)
