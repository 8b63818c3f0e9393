"""Exports a model to ONNX (extra ``[onnx]``)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from udc_model.errors import UdcError
from udc_model.files import atomic_file
from udc_model.models.base import CustomConfig
from udc_model.models.ensemble import Ensemble
from udc_model.models.staged import ImageClassifier


class _Logits(nn.Module):
    """A model whose only output is the logits."""

    def __init__(self, model: ImageClassifier | Ensemble) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (N, num_channels, H, W) to (N, num_labels)."""
        return torch.as_tensor(self.model(pixel_values).logits)


def check_installed() -> None:
    """Raise :class:`UdcError` if the extra ``[onnx]`` is not installed; clearer than the error of torch's exporter."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UdcError(f"{error.name} is not installed; pip install 'udc-model[onnx]'") from None


def export_onnx(
    model: ImageClassifier | Ensemble, path: str | Path, image_size: int, metadata: dict[str, str] | None = None
) -> None:
    """Write a model as ONNX.

    The input is ``pixel_values`` (N, num_channels, image_size, image_size) and the output ``logits`` (N, num_labels),
    for any N.

    Parameters
    ----------
    model : the model; it is moved to the CPU and set to eval mode.
    path : file to write.
    image_size : side of the input, pixels.
    metadata : metadata of the file, in addition to ``classes``, the class names as a JSON list.

    Raises
    ------
    UdcError
        The extra ``[onnx]`` is not installed, or the file cannot be written.
    """
    check_installed()
    config: CustomConfig = model.config
    channels = config.num_channels  # type: ignore[attr-defined]  # all models define it
    program = torch.onnx.export(
        _Logits(model).cpu().eval(),
        (torch.zeros(2, channels, image_size, image_size),),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # None is returned by exports to a file only
    names = [config.id2label[i] for i in range(config.num_labels)]
    program.model.metadata_props.update({"classes": json.dumps(names, ensure_ascii=False)} | (metadata or {}))
    path = Path(path)
    try:
        with atomic_file(path) as scratch:
            program.save(scratch)  # all published sizes are below 2 GB, above which weights need a second file
    except OSError as error:
        raise UdcError(f"{path}: cannot be written: {error}") from error
