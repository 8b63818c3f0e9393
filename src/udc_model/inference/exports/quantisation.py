"""Static quantisation of an ONNX network to 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto

_QUANTISED = ["Conv", "Gemm", "MatMul"]  # nearly all of the time; norms and activations stay in 32 bits


def quantised(network: ModelProto, batches: Iterable[NDArray[np.float32]]) -> ModelProto:
    """A network with 8-bit inputs of convolutions and matrix products, and weights with one scale per channel.

    The weights use seven of their eight bits (-64 to 64). With all of them, the sums of two products exceed 16 bits on
    x86 processors without VNNI, which saturate, and the decisions would depend on the machine (``reduce_range``, see
    "Quantize ONNX Models" in the documentation of ONNX Runtime).

    Parameters
    ----------
    network : with one input.
    batches : inputs (n, …) whose smallest and largest activations become the ranges.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder, _without_advice():
        source, prepared, target = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "target"))
        onnx.save(network, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # folds BatchNorm into convolutions
        quantize_static(
            prepared, target, _Reader(network.graph.input[0].name, batches), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED, per_channel=True, activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8, reduce_range=True,
        )  # fmt: skip
        model = onnx.load(target)
    del model.graph.value_info[:]
    return model


class _Reader:
    """The interface of ``onnxruntime.quantization.CalibrationDataReader``, which needs the extra to be a base class."""

    def __init__(self, name: str, batches: Iterable[NDArray[np.float32]]) -> None:
        self._inputs: Iterator[dict[str, NDArray[np.float32]]] = ({name: batch} for batch in batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input; None at the end."""
        return next(self._inputs, None)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hide the hints that the library writes to the root logger, on steps that are done here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
