"""Tests of the native kernels against torch's operators in float64, and of models with and without the kernels."""

import ctypes
import itertools
import logging

import pytest
import torch
import torch.nn.functional as F

from udc_model.models import ConvNextConfig, ConvNextForImageClassification, kernels
from udc_model.models.kernels import operators
from udc_model.native import library

needs_library = pytest.mark.skipif(library.load_library() is None, reason="no native kernels on this machine")

# (n, channels, height, width): one pixel, channels that fill no register, one image, more images than groups
SHAPES = [(1, 1, 1, 1), (1, 3, 1, 5), (2, 17, 4, 3), (3, 16, 7, 7), (5, 33, 6, 2), (11, 24, 9, 10)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _relative_error(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12))


def _depthwise(shape, size, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return (
        x,
        torch.randn(channels, 1, size, size, generator=generator),
        torch.randn(channels, generator=generator),
        grad,
    )


def _reference(x, weight, bias, grad):
    inputs = [each.double().requires_grad_() for each in (x, weight, bias)]
    out = F.conv2d(*inputs, padding=weight.shape[-1] // 2, groups=len(weight))
    out.backward(grad.double())
    return out.detach(), *(each.grad for each in inputs)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_convolution_equals_torch(shape, size, dtype):
    x, weight, bias, grad = _depthwise(shape, size, dtype)
    rounded_weight = weight.to(dtype).double()  # a bf16 convolution uses rounded weights
    inputs = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    out = torch.ops.udc.depthwise_conv2d(*inputs)
    out.backward(grad)
    expected = _reference(x.detach(), rounded_weight, bias.detach().to(dtype), grad)
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    assert _relative_error(out.detach(), expected[0]) < rounding
    assert _relative_error(x.grad, expected[1]) < rounding
    # the sums are in float32 for any input
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    assert _relative_error(weight.grad, expected[2]) < 1e-5
    assert _relative_error(bias.grad, expected[3]) < 1e-5


@needs_library
def test_depthwise_gradient_accepts_non_contiguous_inputs():
    x, weight, _, grad = _depthwise((2, 12, 6, 10), 7, torch.float32)
    expected = torch.ops.udc.depthwise_conv2d_backward(grad, x, weight)
    for view in (
        lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
        lambda t: t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        lambda t: F.pad(t, (1, 2, 3, 0))[:, :, 3:, 1:-2],
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        viewed = torch.ops.udc.depthwise_conv2d_backward(view(grad), view(x), weight)
        for gradient, reference in zip(viewed, expected, strict=True):
            torch.testing.assert_close(gradient, reference)
    broadcast = torch.ones(()).expand(2, 12, 6, 10)
    torch.testing.assert_close(
        torch.ops.udc.depthwise_conv2d_backward(broadcast, x, weight)[1],
        torch.ops.udc.depthwise_conv2d_backward(torch.ones(2, 12, 6, 10), x, weight)[1],
    )


@needs_library
def test_kernels_give_the_same_bits_for_any_number_of_threads(threads):
    x, weight, bias, grad = _depthwise((9, 40, 8, 8), 7, torch.float32)
    rows, scale = x.permute(0, 2, 3, 1).contiguous(), torch.rand(40)
    rows_grad = grad.permute(0, 2, 3, 1).contiguous()
    results = []
    for number in (1, 2, 3, 4, 4):
        threads(number)
        results.append(
            [
                *torch.ops.udc.depthwise_conv2d_backward(grad, x, weight)[1:],
                torch.ops.udc.bias_gelu(rows, bias),
                *torch.ops.udc.bias_gelu_backward(rows_grad, rows, bias),
                torch.ops.udc.scaled_residual(rows, bias, scale, rows_grad, None),
                *torch.ops.udc.scaled_residual_backward(rows_grad, rows, bias, scale, None),
            ]
        )
    for previous, current in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(previous, current, strict=True))


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 3, 17), (130, 40)], ids=str)
def test_bias_gelu_equals_torch(shape, dtype):
    torch.manual_seed(0)
    x, grad, bias = torch.randn(shape).mul(3).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[-1])
    inputs = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
    out = torch.ops.udc.bias_gelu(*inputs)
    out.backward(grad)
    reference = [x.double().requires_grad_(), bias.double().requires_grad_()]
    expected = F.gelu(reference[0] + reference[1])
    expected.backward(grad.double())
    tolerance = {"rtol": 0, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-5}
    torch.testing.assert_close(out.double(), expected, **tolerance)
    torch.testing.assert_close(inputs[0].grad.double(), reference[0].grad, **tolerance)
    assert _relative_error(inputs[1].grad, reference[1].grad) < 1e-5


@needs_library
def test_bias_gelu_of_extreme_values():
    x = torch.tensor([-1e4, -88.0, -20.0, -5.5, -0.0, 0.0, 20.0, 1e4, float("inf"), float("nan")])
    expected = (x / 2 * (1 + torch.erf(x.double() / 2**0.5))).float()  # torch's gelu maps inf to NaN with AVX-512
    torch.testing.assert_close(torch.ops.udc.bias_gelu(x, torch.zeros(10)), expected, rtol=0, atol=1e-6, equal_nan=True)
    grad = torch.ops.udc.bias_gelu_backward(torch.ones(8), x[:8], torch.zeros(8))[0]
    torch.testing.assert_close(grad, torch.ops.aten.gelu_backward(torch.ones(8), x[:8]), rtol=0, atol=2e-6)
    bf16 = torch.ops.udc.bias_gelu(x.bfloat16(), torch.zeros(10))
    assert bf16[-1].isnan()
    assert bf16[-2].isinf()


@needs_library
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
    ids=str,
)  # fmt: skip
def test_scaled_residual_equals_torch(dtypes, dropped):
    torch.manual_seed(0)
    x, residual = torch.randn(3, 4, 5, 19).to(dtypes[0]), torch.randn(3, 4, 5, 19).to(dtypes[1])
    bias, scale, grad = torch.randn(19), torch.randn(19), torch.randn(3, 4, 5, 19)
    factor = torch.tensor([0.0, 1.25, 1.25]) if dropped else None
    inputs = [each.clone().requires_grad_() for each in (x, bias, scale, residual)]
    out = torch.ops.udc.scaled_residual(*inputs, factor)
    out.backward(grad)
    reference = [each.double().requires_grad_() for each in (x, bias, scale, residual)]
    branch = reference[2] * (reference[0] + reference[1])
    expected = reference[3] + (branch if factor is None else factor.double().view(-1, 1, 1, 1) * branch)
    expected.backward(grad.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    grad_dtypes = (dtypes[0], torch.float32, torch.float32, dtypes[1])
    for actual, exact, dtype in zip(inputs, reference, grad_dtypes, strict=True):
        assert actual.grad.dtype == dtype
        assert _relative_error(actual.grad, exact.grad) < (1e-5 if dtype == torch.float32 else 2**-8)


@needs_library
@pytest.mark.parametrize("name", ["depthwise_conv2d", "bias_gelu", "scaled_residual"])
def test_operators_pass_opcheck(name):
    """Schema, fake and autograd registration are correct."""
    torch.manual_seed(0)
    rows, vector = torch.randn(2, 3, 4, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    arguments = {
        "depthwise_conv2d": (torch.randn(2, 6, 5, 4, requires_grad=True), torch.randn(6, 1, 3, 3, requires_grad=True),
                             vector),
        "bias_gelu": (rows, vector),
        "scaled_residual": (rows, vector, torch.randn(6, requires_grad=True), torch.randn(2, 3, 4, 6), None),
    }[name]  # fmt: skip
    torch.library.opcheck(getattr(operators, name), arguments)


ROWS, VECTOR = torch.zeros(2, 3, 6), torch.zeros(6)


@needs_library
@pytest.mark.parametrize(("name", "arguments"), [
    ("bias_gelu", (ROWS, torch.zeros(3))),
    ("bias_gelu", (ROWS, VECTOR.double())),
    ("bias_gelu", (ROWS.half(), VECTOR)),
    ("bias_gelu_backward", (ROWS[:1], ROWS, VECTOR)),
    ("bias_gelu_backward", (ROWS.bfloat16(), ROWS, VECTOR)),
    ("scaled_residual", (ROWS, VECTOR, torch.zeros(3), ROWS, None)),
    ("scaled_residual", (ROWS, torch.zeros(3), VECTOR, ROWS, None)),
    ("scaled_residual", (ROWS, VECTOR, VECTOR, ROWS[:1], None)),
    ("scaled_residual", (ROWS.half(), VECTOR, VECTOR, ROWS, None)),
    ("scaled_residual", (ROWS, VECTOR, VECTOR, ROWS.half(), None)),
    ("scaled_residual", (ROWS, VECTOR, VECTOR, ROWS, torch.zeros(1))),
    ("scaled_residual", (ROWS, VECTOR, VECTOR, ROWS, torch.zeros(2).double())),
    ("scaled_residual", (VECTOR, VECTOR, VECTOR, VECTOR, VECTOR)),
    ("scaled_residual_backward", (ROWS[:1], ROWS, VECTOR, VECTOR, None)),
    ("scaled_residual_backward", (ROWS.bfloat16(), ROWS, VECTOR, VECTOR, None)),
    ("scaled_residual_backward", (ROWS, ROWS, VECTOR, VECTOR[:3], None)),
    ("depthwise_conv2d", (torch.zeros(1, 6, 5, 5), torch.zeros(6, 1, 4, 4), VECTOR)),
    ("depthwise_conv2d", (torch.zeros(1, 6, 5, 5), torch.zeros(6, 1, 3, 3).double(), VECTOR)),
    ("depthwise_conv2d_backward", (torch.zeros(1, 6, 4, 5), torch.zeros(1, 6, 5, 5), torch.zeros(6, 1, 3, 3))),
    ("depthwise_conv2d_backward", (*torch.zeros(2, 1, 6, 5, 5), torch.zeros(6, 1, 5, 3))),
    ("depthwise_conv2d_backward", (*torch.zeros(2, 1, 6, 5, 5), torch.zeros(3, 1, 3, 3))),
    ("depthwise_conv2d_backward", (*torch.zeros(2, 1, 6, 5, 5).half(), torch.zeros(6, 1, 3, 3))),
])  # fmt: skip
def test_operators_refuse_what_a_kernel_would_read_or_write_wrongly(name, arguments, monkeypatch):
    monkeypatch.setattr(operators, "call", lambda *arguments: pytest.fail("the kernel was called"))
    with pytest.raises(ValueError, match=r"the kernel needs|an odd size"):
        getattr(torch.ops.udc, name)(*arguments)


@needs_library
def test_vectors_need_not_be_contiguous():
    torch.manual_seed(0)
    x, vectors, factor = torch.randn(4, 3, 8), torch.randn(8, 2), torch.rand(4, 2)[:, 0]
    bias, scale = vectors.unbind(1)
    torch.testing.assert_close(torch.ops.udc.bias_gelu(x, bias), F.gelu(x + bias))
    expected = x + factor.view(-1, 1, 1) * scale * (x + bias)
    torch.testing.assert_close(torch.ops.udc.scaled_residual(x, bias, scale, x, factor), expected)
    for name, inputs in (("bias_gelu_backward", (bias,)), ("scaled_residual_backward", (bias, scale, factor))):
        backward = getattr(torch.ops.udc, name)
        contiguous = backward(x, x, *(vector.contiguous() for vector in inputs))
        assert all(map(torch.equal, backward(x, x, *inputs), contiguous))


@needs_library
@pytest.mark.parametrize("autocast", [False, True], ids=["float64 parameters", "float16"])
def test_types_without_a_kernel_use_torch(autocast, monkeypatch):
    monkeypatch.setattr(kernels, "MIN_FUSED_ELEMENTS", 0)
    monkeypatch.setattr(operators, "call", lambda *arguments: pytest.fail("the kernel was called"))
    x, linear, scale = torch.randn(2, 3, 3, 6), torch.nn.Linear(6, 6), torch.rand(6)
    factor = torch.ones(2, dtype=torch.float32 if autocast else torch.float64)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        expected = x + scale * linear(x)
        torch.testing.assert_close(kernels.add_scaled(x, x, linear, scale, factor), expected)
        if autocast:
            torch.testing.assert_close(kernels.linear_act(x, linear, torch.nn.GELU()), F.gelu(linear(x)))


def _tiny(**settings):
    torch.manual_seed(0)
    shape = {"num_stages": 2, "hidden_sizes": [8, 20], "depths": [2, 1], "layer_scale_init_value": 0.5}
    model = ConvNextForImageClassification(ConvNextConfig(num_labels=3, **shape | settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def _gradients(model, autocast=False):
    torch.manual_seed(1)
    images, labels = torch.randn(4, 3, 24, 24), torch.tensor([0, 1, 2, 1])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(images).logits
    F.cross_entropy(logits.float(), labels).backward()
    return logits.detach().float(), {name: p.grad for name, p in model.named_parameters()}


@needs_library
@pytest.mark.parametrize("settings", [{}, {"drop_path_rate": 0.5}, {"hidden_act": "relu"},
                                      {"layer_scale_init_value": 0.0}], ids=str)  # fmt: skip
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_model_gives_the_same_with_and_without_kernels(settings, autocast, monkeypatch):
    used_kernels = []
    monkeypatch.setattr(operators, "call", lambda name, *a: (used_kernels.append(name), library.call(name, *a)))
    monkeypatch.setattr(kernels, "MIN_FUSED_ELEMENTS", 0)
    logits, gradients = _gradients(_tiny(**settings), autocast)
    assert "udc_depthwise_gradient" in used_kernels
    assert ("udc_bias_gelu_backward" in used_kernels) == ("hidden_act" not in settings)
    assert ("udc_scaled_residual_backward" in used_kernels) == ("layer_scale_init_value" not in settings)
    monkeypatch.setattr(kernels, "load_library", lambda: None)
    used_kernels.clear()
    torch_logits, torch_gradients = _gradients(_tiny(**settings), autocast)
    assert not used_kernels
    tolerance = 0.05 if autocast else 1e-5
    assert _relative_error(logits, torch_logits.double()) < tolerance
    for name, gradient in gradients.items():
        assert _relative_error(gradient, torch_gradients[name].double()) < 3 * tolerance, name


def _reload(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return library.load_library.__wrapped__()


def test_disabled_or_missing_library_is_logged(monkeypatch, caplog):
    with caplog.at_level(logging.INFO, logger="udc_model"):
        assert _reload(monkeypatch, UDC_KERNELS="off") is None
        assert "disabled by UDC_KERNELS" in caplog.text
        monkeypatch.setenv("UDC_KERNELS", "on")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert _reload(monkeypatch) is None
        assert "no C compiler" in caplog.text


@needs_library
def test_library_of_another_version_is_rejected(monkeypatch, caplog):
    monkeypatch.setattr(library, "VERSION", library.VERSION + 1)
    assert _reload(monkeypatch) is None
    assert "install the package again" in caplog.text
    assert isinstance(library.load_library(), ctypes.CDLL)
