"""Writes an export, checks its decisions, and puts it in place only if they cost what the model's do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from udc_model import __version__
from udc_model.data.packed import PackedDataset, PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.familiarity import evenly_spaced
from udc_model.errors import UdcError
from udc_model.files import atomic_file, atomic_folder
from udc_model.inference.exports import huggingface_folder, onnx_file, openvino_folder, torch_file
from udc_model.inference.exports.agreement import Agreement, Answers, Run, compare, inputs_of
from udc_model.inference.exports.decision_graph import DTYPES, Decide, DecisionGraph, Network, Prepare
from udc_model.inference.exports.targets import SUFFIXES, TARGETS
from udc_model.inference.feature_distance import FeatureDistance
from udc_model.inference.stored_model import StoredModel
from udc_model.models.factory import model_of_folder

_CALIBRATION_IMAGES = 256  # whose activations give the ranges of int8

_NO_IMAGES = {
    "openvino": "which computes in single precision, in which Pillow's resizing is not exact",
    "safetensors-hf": "whose image processor resizes",
}
_REFUSED = {  # why not in these precisions
    ("onnx", "bf16"): "ONNX Runtime has no convolution in bf16 on the CPU",
    ("openvino", "bf16"): "OpenVINO chooses bf16 when it loads a model (INFERENCE_PRECISION_HINT)",
    ("torch-export", "int8"): "static quantisation is available for onnx and openvino",
}


@dataclass(frozen=True)
class ExportRequest:
    """What is written.

    Parameters
    ----------
    to : one of `TARGETS`.
    precision : ``fp32``, ``fp16``, ``bf16`` or ``int8``, of the network.
    input : ``image``, decoded images of any size, or ``pixel_values``, the network's normalised input. None is the
        first one if it is available.
    """

    to: str = "onnx"
    precision: str = "fp32"
    input: str | None = None

    @property
    def takes_images(self) -> bool:
        """Whether the input is decoded images of any size."""
        return self.to in SUFFIXES if self.input is None else self.input == "image"

    def check(self, stored: StoredModel) -> None:
        """Raise :class:`UdcError` if the model cannot be written this way, or an extra is missing."""
        if self.precision not in TARGETS[self.to]:
            reason = _REFUSED.get((self.to, self.precision), "the weights are stored as they were trained")
            raise UdcError(f"--precision {self.precision}: not available for {self.to}: {reason}; available: "
                           f"{', '.join(TARGETS[self.to])}")  # fmt: skip
        if self.takes_images and self.to not in SUFFIXES:
            raise UdcError(f"--input image: not available for {self.to}, {_NO_IMAGES[self.to]}; use pixel_values")
        if self.to in ("onnx", "openvino"):
            onnx_file.check_installed()
        if self.to == "openvino":
            openvino_folder.check_installed()
        if self.to == "safetensors-hf":
            huggingface_folder.check_supported(stored)


def write_export(
    request: ExportRequest, stored: StoredModel, card: str, target: Path, data: PackedDataset | None,
    tolerance: float, is_checked: bool = True,
) -> tuple[Agreement | None, str]:  # fmt: skip
    """Write an export, check it on the test split, and put it in place unless it is refused.

    Parameters
    ----------
    card : the model card; empty for none.
    data : the prepared data; None is possible if nothing is checked or quantised.
    tolerance : see `Agreement.problem`.

    Returns
    -------
    The agreement, None without a check; and the library that ran the export.

    Raises
    ------
    UdcError
        The export is refused, or cannot be written.
    """
    request.check(stored)
    test = _split(data, "test", stored) if is_checked else None
    expected = None if test is None else _model_answers(stored, test)
    agreement = None
    try:
        with (atomic_file if request.to in SUFFIXES else atomic_folder)(target) as scratch:
            _write(request, stored, card, scratch, data)
            run, library = load_export(request, scratch)
            if test is not None and expected is not None:
                agreement = compare(run, request.takes_images, test, expected, stored.policy, stored.preprocessing)
                if problem := agreement.problem(tolerance, is_exact(request, stored)):
                    raise UdcError(f"{target}: not written: {problem}")
    except OSError as error:
        raise UdcError(f"{target}: cannot be written: {error}") from error
    return agreement, library


def is_exact(request: ExportRequest, stored: StoredModel) -> bool:
    """Whether export and model compute in single precision, so that their decisions differ by rounding only."""
    return request.precision == "fp32" and stored.policy.precision != "bf16"


def _split(data: PackedDataset | None, name: str, stored: StoredModel) -> PackedSplit:
    """A split of the prepared data; :class:`UdcError` if there is none, or it is of other classes or images."""
    if data is None:
        raise UdcError("data/prepared: is needed")
    if data.classes != stored.policy.classes:
        raise UdcError(f"{data.folder}: has other classes than the model; run `dvc repro`")
    if _pixels(data.preprocessing) != _pixels(stored.preprocessing):
        raise UdcError(f"{data.folder}: was prepared for another model; run `dvc repro`")
    split = data.split(name)
    if not len(split):
        raise UdcError(f"{data.folder}: the split {name} is empty")
    return split


def _pixels(preprocessing: Preprocessing) -> Preprocessing:
    """What determines prepared images; mean and standard deviation may be those of the model's first weights."""
    return replace(preprocessing, mean=(), std=())


def _model_answers(stored: StoredModel, split: PackedSplit) -> Answers:
    """The model's own answers, as udc predict gives them."""
    outputs, policy = stored.load().outputs_of_stored(split.images, progress="deciding"), stored.policy
    familiarity = policy.familiarity_of(outputs.distances)
    return Answers(policy.apply(outputs.logits, familiarity).decided, familiarity)


def _write(request: ExportRequest, stored: StoredModel, card: str, path: Path, data: PackedDataset | None) -> None:
    if request.to == "safetensors-hf":
        huggingface_folder.save_huggingface(stored, path, card)
        return
    is_cast = request.to != "openvino" and request.precision != "int8"  # OpenVINO compresses the weights itself
    dtype = DTYPES[request.precision] if is_cast else torch.float32
    distance = None if stored.statistics is None else FeatureDistance(stored.statistics)
    network = Network(model_of_folder(stored.model), stored.policy.flip_averaging, dtype, distance is not None)
    prepare = Prepare(stored.preprocessing) if request.takes_images else None
    graph = DecisionGraph(prepare, network, Decide(stored.policy, distance)).eval()
    metadata = metadata_of(request, stored) | ({"model_card": card} if card else {})
    example = _example(request, stored)
    if request.to == "torch-export":
        torch_file.save_torch(graph, example, path, json.dumps(metadata, ensure_ascii=False, indent=2))
        return
    calibration = _calibration(data, stored) if request.precision == "int8" else None
    model = onnx_file.decision_onnx(graph, example, calibration)
    if request.to == "openvino":
        openvino_folder.save_openvino(model, path, metadata, request.precision == "fp16")
    else:
        onnx_file.save_onnx(model, path, metadata)


def _example(request: ExportRequest, stored: StoredModel) -> torch.Tensor:
    """An input of two images, for tracing; those of any size have another one than prepared images."""
    channels, size, side = stored.preprocessing.channels, stored.preprocessing.size, stored.preprocessing.stored_size
    if request.takes_images:
        return torch.zeros(2, side + 3, side + 5, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, size, size)


def _calibration(data: PackedDataset | None, stored: StoredModel) -> Iterator[NDArray[np.float32]]:
    """Inputs of images of the calibration split, evenly spaced, for the ranges of activations."""
    images = _split(data, "calibration", stored).images
    rows = evenly_spaced(len(images), _CALIBRATION_IMAGES)
    return inputs_of(np.asarray(images[rows]), stored.preprocessing)


def load_export(request: ExportRequest, path: Path) -> tuple[Run, str]:
    """A function that runs a written export, and the library that it uses."""
    match request.to:
        case "onnx":
            import onnxruntime

            return onnx_file.load_onnx(path), f"onnxruntime {onnxruntime.__version__}"
        case "torch-export":
            return torch_file.load_torch(path), f"torch {torch.__version__}"
        case "openvino":
            import openvino

            return openvino_folder.load_openvino(path), f"openvino {openvino.__version__}"
    return huggingface_folder.load_huggingface(path)


def metadata_of(request: ExportRequest, stored: StoredModel) -> dict[str, str]:
    """What a file states about itself; lists and mappings are JSON."""
    policy = stored.policy
    return {
        "classes": json.dumps(policy.classes, ensure_ascii=False),
        "outcomes": json.dumps(policy.outcomes, ensure_ascii=False),
        "costs_digest": policy.costs_digest,
        "model_sha256": stored.model.weights_sha256,
        "preprocessing": json.dumps(stored.preprocessing.to_config()),
        "input": "image" if request.takes_images else "pixel_values",
        "precision": request.precision,
        "udc_version": __version__,
    } | ({} if policy.familiarity is None else {"unfamiliar_level": str(policy.familiarity.level)})
