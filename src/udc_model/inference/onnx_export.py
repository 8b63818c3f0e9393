"""Write a model as ONNX, for runtimes without PyTorch (extra ``[onnx]``)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from udc_model.errors import UdcError
from udc_model.models.base import CustomConfig
from udc_model.models.staged import ImageClassifier


class _Logits(nn.Module):
    """The model with its logits as the one output."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, num_channels, H, W) to (N, num_labels)."""
        return torch.as_tensor(self.model(pixel_values).logits)


def export_onnx(
    model: ImageClassifier, path: str | Path, image_size: int, metadata: dict[str, str] | None = None
) -> None:
    """Write ``path``: input ``pixel_values`` (N, C, image_size, image_size), output ``logits`` (N, num_labels), any N.

    The class names are stored in the file as the metadata ``classes`` (a JSON list), beside what ``metadata`` adds.

    Raises
    ------
    UdcError
        The extra ``[onnx]`` is not installed, or the file cannot be written.
    """
    try:
        import onnx  # noqa: F401  # torch's exporter says less clearly what is missing
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UdcError(f"{error.name} is not installed; pip install 'udc-model[onnx]'") from None
    config: CustomConfig = model.config
    channels = config.num_channels  # type: ignore[attr-defined]  # of both architectures
    program = torch.onnx.export(
        _Logits(model).cpu().eval(),
        (torch.zeros(2, channels, image_size, image_size),),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # only a legacy export to a file returns nothing
    names = [config.id2label[i] for i in range(config.num_labels)]
    program.model.metadata_props.update({"classes": json.dumps(names, ensure_ascii=False)} | (metadata or {}))
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        program.save(scratch)  # all published sizes are below the 2 GB from which weights need a second file
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UdcError(f"{path}: cannot be written: {error}") from error
