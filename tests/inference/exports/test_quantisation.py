"""Networks in 8 bits compute the same on every processor."""

import numpy as np
import pytest

from udc_model.inference.exports.quantisation import quantised

pytest.importorskip("onnxruntime")
INPUTS, OUTPUTS = 64, 5


@pytest.fixture
def product(rng):
    """A matrix product with large weights of one sign, the sum in which 16 bits are exceeded first, and the weights."""
    from onnx import TensorProto, helper, numpy_helper

    weights = rng.uniform(0.9, 1, (INPUTS, OUTPUTS)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUTPUTS])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), weights


def _run(model, values, level):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": values})[0]


def test_no_sum_saturates(product, rng):
    from onnxruntime import GraphOptimizationLevel as Level

    network, weights = product
    values = np.concatenate([rng.uniform(-1, 1, (20, INPUTS)), np.ones((1, INPUTS)), -np.ones((1, INPUTS))])
    values = values.astype(np.float32)
    model = quantised(network, [values])
    fast = _run(model, values, Level.ORT_ENABLE_ALL)  # in integers; without optimisation, in float32
    np.testing.assert_allclose(fast, _run(model, values, Level.ORT_DISABLE_ALL), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(fast, values @ weights, rtol=0.01, atol=0.3)


def test_weights_leave_one_bit_free(product, rng):
    from onnx import TensorProto, numpy_helper

    model = quantised(product[0], [rng.uniform(-1, 1, (4, INPUTS)).astype(np.float32)])
    stored = [numpy_helper.to_array(each) for each in model.graph.initializer if each.data_type == TensorProto.INT8]
    [weights] = [each for each in stored if each.shape == (INPUTS, OUTPUTS)]
    assert np.abs(weights.astype(int)).max() in (63, 64)
