"""Folders of OpenVINO (extra ``[openvino]``): ``model.xml`` with the graph and ``model.bin`` with the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from udc_model.errors import UdcError
from udc_model.inference.exports.decision_graph import ALL_OUTPUTS

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL = "model.xml"


def check_installed() -> None:
    """Raise :class:`UdcError` if the extra ``[openvino]`` is not installed."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        raise UdcError("openvino is not installed; pip install 'udc-model[openvino]'") from None


def save_openvino(model: ModelProto, folder: Path, metadata: Mapping[str, str], compress_to_fp16: bool) -> None:
    """Convert an ONNX model and write it into a folder; ``compress_to_fp16`` stores the weights in 16 bits."""
    import onnx
    import openvino

    source = folder / "source.onnx"
    onnx.save(model, source)
    converted = openvino.convert_model(source)
    for port, output in zip(converted.outputs, model.graph.output, strict=True):
        port.get_tensor().set_names({output.name})
    for key, value in metadata.items():
        converted.set_rt_info(value, ["udc", key])
    openvino.save_model(converted, folder / MODEL, compress_to_fp16=compress_to_fp16)
    source.unlink()


def load_openvino(folder: Path) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
    """A function from the input of a folder's model to its outputs by name, on the CPU in single precision."""
    import openvino

    compiled = openvino.Core().compile_model(folder / MODEL, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # OpenVINO adds names of its own to some outputs
    names = [next(name for name in ALL_OUTPUTS if name in output.get_names()) for output in compiled.outputs]

    def decide(image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        computed = compiled({0: image})
        return {name: np.array(computed[name]) for name in names}

    return decide
