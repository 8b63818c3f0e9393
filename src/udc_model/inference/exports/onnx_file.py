"""ONNX files (extra ``[onnx]``): three traced parts, joined so that the network alone can be quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udc_model.errors import UdcError
from udc_model.inference.exports.decision_graph import DecisionGraph, Network, traced
from udc_model.inference.exports.quantisation import quantised

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_OPSET = 18
_VALUES, _LOGITS, _FEATURES = "pixel_values", "logits", "features"  # between the parts


def check_installed() -> None:
    """Raise :class:`UdcError` if the extra ``[onnx]`` is not installed; clearer than the error of torch's exporter."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UdcError(f"{error.name} is not installed; pip install 'udc-model[onnx]'") from None


def decision_onnx(
    graph: DecisionGraph, example: Tensor, calibration: Iterable[NDArray[np.float32]] | None = None
) -> ModelProto:
    """A graph as ONNX, with the input ``image`` or ``pixel_values`` and the outputs of the graph.

    Parameters
    ----------
    example : an input of the graph.
    calibration : batches (n, C, size, size) of the network's inputs, from which the ranges of activations are measured;
        the network is then quantised to 8 bits. None does not quantise.
    """
    with torch.no_grad():
        values = example if graph.prepare is None else graph.prepare(example)
        computed = graph.network(values)
    network = network_onnx(graph.network, values)
    if calibration is not None:
        network = quantised(network, calibration)
    examples = computed if graph.network.has_features else [computed]
    names = [name for name in graph.names if name != _LOGITS]
    decided = onnx_part(graph.decide, examples, [_LOGITS, _FEATURES][: len(examples)], names, ["batch"])
    parts = [network, decided]
    if graph.prepare is not None:
        parts.insert(0, onnx_part(graph.prepare, [example], ["image"], [_VALUES], ["batch", "height", "width"]))
    return _joined(parts, graph.names)


def network_onnx(network: Network, values: Tensor) -> ModelProto:
    """A network from ``pixel_values`` (N, C, size, size) to ``logits`` (N, K), and its features, as ONNX for any N."""
    outputs = [_LOGITS, _FEATURES] if network.has_features else [_LOGITS]
    return onnx_part(network, [values], [_VALUES], outputs, ["batch"])


def onnx_part(
    module: nn.Module, examples: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str], dims: Sequence[str]
) -> ModelProto:
    """A module as ONNX.

    Parameters
    ----------
    examples : of the inputs.
    dims : names of the leading dimensions of the inputs, which may have any size; the first one is also the outputs'.
    """
    program = traced(module, examples, dims)
    converted = torch.onnx.export(program, input_names=inputs, output_names=outputs, opset_version=_OPSET, dynamo=True,
                                  verbose=False)  # fmt: skip
    assert converted is not None  # None is returned by exports to a file only
    model = converted.model_proto
    _remove_notes(model.graph)
    # Sizes have names of the tracer, which mean other sizes in the other parts.
    del model.graph.value_info[:]
    for value in model.graph.input:
        for axis, name in enumerate(dims):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = dims[0]
    return model


def _remove_notes(graph: GraphProto) -> None:
    """Remove what the tracer notes about the origin of each node, such as paths on this machine."""
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
        del value.metadata_props[:]
        value.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _remove_notes(attribute.g)


def _joined(parts: Sequence[ModelProto], names: Sequence[str]) -> ModelProto:
    """Parts in sequence: each one's inputs are outputs of the part before; ``names`` are those of the outputs."""
    from onnx import compose

    model = parts[0]  # without a prefix, which would not reach the branches of the resizing
    for number, part in enumerate(parts[1:], 1):
        part = compose.add_prefix(part, f"part{number}/", rename_inputs=False, rename_outputs=False)
        model.graph.node.extend(part.graph.node)
        model.graph.initializer.extend(part.graph.initializer)
        model.functions.extend(part.functions)
        model.opset_import.extend(each for each in part.opset_import
                                  if each.domain not in {known.domain for known in model.opset_import})  # fmt: skip
        model.ir_version = max(model.ir_version, part.ir_version)
    outputs = {value.name: value for part in parts for value in part.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(outputs[name] for name in names)
    return model


def save_onnx(model: ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model in one file; all published sizes are below 2 GB, above which weights need a second file."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def load_onnx(path: Path) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
    """A function from the input of a file to its outputs by name, on the CPU."""
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name, names = session.get_inputs()[0].name, [each.name for each in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {name: image}), strict=True))
