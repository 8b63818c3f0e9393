"""Tests that torch.export, torch.compile, TorchScript tracing and ONNX give the logits of the model."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from udc_model.inference.exports.decision_graph import Network
from udc_model.inference.exports.onnx_file import network_onnx, save_onnx
from udc_model.models import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Ensemble,
    ResNetConfig,
    ResNetForImageClassification,
    kernels,
)
from udc_model.models.kernels import operators
from udc_model.native import library

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
KINDS = ["resnet", "convnext"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["native kernels", "torch operators"])
def _kernels(request, monkeypatch):
    monkeypatch.setattr(kernels, "MIN_FUSED_ELEMENTS", 0)
    if request.param != "native kernels":
        monkeypatch.setattr(kernels, "load_library", lambda: None)


def _model(kind, seed=0):
    torch.manual_seed(seed)
    names = {0: "a", 1: "b", 2: "ç"}
    if kind == "ensemble":
        members = [_model("convnext", seed) for seed in range(2)]
        return Ensemble.of_members(members[0].config, [0.5, 1.7], [member.state_dict() for member in members])
    if kind == "resnet":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], id2label=names)
        model = ResNetForImageClassification(config)
    else:
        shape = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_scale_init_value": 0.5}
        model = ConvNextForImageClassification(ConvNextConfig(**shape, drop_path_rate=0.2, id2label=names))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_export_gives_equal_logits(kind, gradients):
    model = _model(kind)
    with torch.set_grad_enabled(gradients):
        shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
        program = torch.export.export(model, (IMAGES,), dynamic_shapes=shapes)
    assert not any("udc" in str(node.target) for node in program.graph.nodes)  # runs without this project
    for images in (IMAGES, IMAGES[:2]):
        torch.testing.assert_close(program.module()(images).logits, model(images).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "native", "backend"),
    [("resnet", True, "inductor"), ("convnext", True, "inductor"), ("convnext", False, "aot_eager")],
)
def test_torch_compile_gives_equal_logits_and_gradients(kind, native, backend, monkeypatch):
    monkeypatch.setattr(kernels, "MIN_FUSED_ELEMENTS", 0)
    if not native:
        monkeypatch.setattr(kernels, "load_library", lambda: None)
    torch.compiler.reset()
    used_kernels, results = [], []
    monkeypatch.setattr(operators, "call", lambda name, *a: (used_kernels.append(name), library.call(name, *a)))
    for compiled in (False, True):
        model = _model(kind).train()
        for module in model.modules():
            if type(module).__name__ == "ConvNextDropPath":
                module.p = 0.0  # compiled code uses other random numbers
        if backend == "inductor" and shutil.which("g++") is None:
            backend = "aot_eager"  # inductor needs a C++ compiler
        step = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        used_kernels.clear()
        output = step(IMAGES, labels=torch.tensor([0, 2, 1]))
        output.loss.backward()
        results.append((output.logits.detach(), {key: p.grad for key, p in model.named_parameters()}))
    # inductor fuses GELU and residual; the native kernel replaces oneDNN's depthwise gradient
    has_kernels = kind == "convnext" and native and library.load_library() is not None
    assert set(used_kernels) == ({"udc_depthwise_gradient"} if has_kernels else set())
    (logits, gradients), (compiled_logits, compiled_gradients) = results
    torch.testing.assert_close(compiled_logits, logits, rtol=1e-4, atol=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            compiled_gradients[key], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("kind", KINDS)
def test_torchscript_trace_gives_equal_logits(kind, tmp_path):
    model = _model(kind)
    model.config.return_dict = False
    torch.jit.trace(model, IMAGES).save(str(tmp_path / "model.pt"))
    traced = torch.jit.load(str(tmp_path / "model.pt"))
    assert "udc::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(IMAGES[:2])[0], model(IMAGES[:2])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "ensemble"])
def test_onnx_gives_equal_logits(kind, tmp_path):
    model, path = _model(kind), tmp_path / "model.onnx"
    save_onnx(network_onnx(Network(model), IMAGES), path, {"image_size": "32"})
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    for images in (IMAGES, IMAGES[:1]):
        (logits,) = session.run(["logits"], {"pixel_values": images.numpy()})
        np.testing.assert_allclose(logits, model(images).logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map == {"image_size": "32"}
