"""Loads checkpoints of other libraries: reads the file, renames the keys to Hugging Face's layout, loads what fits.

No code is ever unpickled: files are read as safetensors or with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from udc_model.checksums import check_cached_blob
from udc_model.errors import UdcError
from udc_model.files import open_regular, sha256_of
from udc_model.model_files.weights import check_fits_memory, read_header
from udc_model.models.layouts import to_our_layout
from udc_model.models.staged import ImageClassifier
from udc_model.records import Record, read_record

State = dict[str, Tensor]

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # one is in each folder

_ADVICE = "set model.weights to a complete checkpoint, or to null"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MAX_JSON = 16 * 2**20  # bytes of an index of shards
_MAX_PICKLE = 16 * 2**20  # bytes that describe the tensors of a checkpoint
_MAX_DEPTH = 4  # of a state dict in a checkpoint; a damaged one may contain itself


class _ShardIndex(Record):
    weight_map: Annotated[dict[str, str], Field(min_length=1)]


@dataclass
class WeightsReport:
    """Result of loading a checkpoint.

    Attributes
    ----------
    path : file or folder of the checkpoint.
    sha256 : SHA-256 of its file; of several files, that of their SHA-256.
    layout : name of its key layout.
    loaded : keys of the model that were loaded.
    converted : model key by checkpoint key, for renamed keys.
    skipped : reason by checkpoint key, for keys that were not loaded.
    missing : keys of the model that remain randomly initialised.
    summed_channels : key of the first convolution if its kernel was summed over RGB for grey images; else None.
    """

    path: str
    sha256: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    summed_channels: str | None = None

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def summary(self) -> str:
        """Return one line with the number of loaded keys and the names of skipped and missing keys."""
        parts = [f"weights from {self.path} ({self.layout}): {len(self.loaded)} loaded"]
        if self.skipped:
            parts.append("skipped " + ", ".join(f"{key} ({reason})" for key, reason in self.skipped.items()))
        if self.summed_channels:
            parts.append(f"{self.summed_channels} summed over its input channels for grey images")
        if self.missing:
            parts.append(f"randomly initialised: {', '.join(self.missing)}")
        return "; ".join(parts)


def load_weights(
    model: ImageClassifier, path: str | Path, include: Sequence[str] | None = None, exclude: Sequence[str] = (),
    expected_sha256: str | None = None,
) -> WeightsReport:  # fmt: skip
    """Load the weights of a checkpoint whose names and shapes match the model.

    A head for another number of classes is skipped. If the model takes one channel and the checkpoint three, the first
    kernel is summed over its input channels: the output is that of the checkpoint's model on three equal channels.

    Parameters
    ----------
    path : a Hugging Face folder (safetensors, sharded safetensors or ``.bin``), or a ``.safetensors``, ``.bin``,
        ``.pth``, ``.pt`` or ``.ckpt`` file of Hugging Face, torchvision, timm or facebookresearch/ConvNeXt, possibly
        wrapped by Lightning, DistributedDataParallel or torch.compile.
    include, exclude : patterns (``*``, ``?``, ``[…]``) of the model's keys. A key is loaded if it matches one of
        ``include`` (None: any key) and none of ``exclude``.
    expected_sha256 : SHA-256 that the checkpoint must have; None accepts any.

    Raises
    ------
    UdcError
        The file is missing, damaged, another one than expected or contains code, no weight matches the model, or one
        that does is not dense, not floating-point or not finite.
    """
    path = Path(path)
    sha256 = weights_sha256(path, expected_sha256)
    state: State = {}
    for file in _weight_files(path):
        state |= _state_dict(_read_file(file))
    layout, renamed = to_our_layout(state, model.key_layouts())
    report = WeightsReport(str(path), sha256, layout)
    model_state = model.state_dict()
    matching: State = {}
    for original, (key, tensor) in renamed.items():
        if key is None or key not in model_state:
            report.skipped[original] = "the model has no such weight"
        elif reason := _exclusion(key, include, exclude):
            report.skipped[original] = reason
        elif (fitted := _checked(key, tensor, model_state[key], original, report)) is not None:
            matching[key] = fitted
    report.loaded = sorted(matching)
    unmatched = (key for key in model_state if key not in matching)
    report.missing = sorted(key for key in unmatched if not key.endswith("num_batches_tracked"))
    if not matching and any("model.weights_" in reason for reason in report.skipped.values()):
        raise UdcError(f"model.weights: model.weights_include and model.weights_exclude exclude all weights of {path}")
    if not any(key.endswith("weight") and not key.startswith("classifier") for key in matching):
        raise UdcError(
            f"model.weights: no weight in {path} matches the {model.config.model_type}; the first keys of the file are "
            f"{', '.join(list(state)[:3])}, those of the model {', '.join(list(model_state)[:3])}"
        )
    model.load_state_dict(matching, strict=False)
    return report


def _exclusion(key: str, include: Sequence[str] | None, exclude: Sequence[str]) -> str | None:
    """Why the patterns exclude a key of the model; None if they do not."""
    if include is not None and not any(fnmatchcase(key, pattern) for pattern in include):
        return f"{key} matches no pattern of model.weights_include"
    if any(fnmatchcase(key, pattern) for pattern in exclude):
        return f"{key} is excluded by model.weights_exclude"
    return None


def _checked(key: str, tensor: Tensor, target: Tensor, original: str, report: WeightsReport) -> Tensor | None:
    """The values for a weight of the model, of the key ``original`` of the checkpoint; None if its shape differs."""
    origin = f"model.weights: {report.path}: {original}"
    fitted = _fitted(key, tensor, target, origin)
    if fitted.shape != target.shape:
        report.skipped[original] = _mismatch(key, fitted, target)
        return None
    _check_values(fitted, target, origin)
    if _is_rgb_stem_of_grey_model(tensor, target):
        report.summed_channels = key
    if key != original:
        report.converted[original] = key
    return fitted


def _fitted(key: str, tensor: Tensor, target: Tensor, origin: str) -> Tensor:
    """The tensor of a checkpoint in the shape of the model's, as far as the formats are known to differ.

    Raises
    ------
    UdcError
        It has no values in memory, or not one at each index, so that nothing can be computed with it.
    """
    is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
    if not is_dense or not tensor.is_cpu:
        raise UdcError(f"{origin}: is not a dense tensor with values (layout {tensor.layout}, type {tensor.dtype}, "
                       f"device {tensor.device}); {_ADVICE}")  # fmt: skip
    if _is_rgb_stem_of_grey_model(tensor, target):
        return tensor.sum(dim=1, keepdim=True)
    if key.endswith("layer_scale_parameter") and tensor.numel() == target.numel():
        return tensor.flatten()  # it is (C, 1, 1) in torchvision and (C,) elsewhere
    return tensor


def _is_rgb_stem_of_grey_model(tensor: Tensor, model_tensor: Tensor) -> bool:
    """Whether two kernels (out, in, height, width) differ only in 3 and 1 input channels."""
    rgb, grey = tuple(tensor.shape), tuple(model_tensor.shape)
    return len(rgb) == len(grey) == 4 and (rgb[1], grey[1]) == (3, 1) and (rgb[0], *rgb[2:]) == (grey[0], *grey[2:])


def _check_values(tensor: Tensor, target: Tensor, origin: str) -> None:
    """:class:`UdcError` unless a tensor is finite and of a type that the model's can represent.

    A counter, such as num_batches_tracked, may have any real type.
    """
    is_counter = not target.is_floating_point()
    if tensor.is_complex() if is_counter else tensor.dtype not in _FLOATS:
        raise UdcError(f"{origin}: has the type {tensor.dtype}, the model has {target.dtype}; {_ADVICE}")
    if not torch.isfinite(tensor if is_counter else tensor.to(target.dtype)).all():
        raise UdcError(f"{origin}: has values that are NaN, infinite or too large for {target.dtype}; {_ADVICE}")


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UdcError(f"model.weights: {path}: no such file or folder")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_record(index, _ShardIndex, _ADVICE, _MAX_JSON).weight_map.values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise UdcError(f"model.weights: {index} lists files outside its folder: {', '.join(outside)}")
        return [path / name for name in names]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return [path / name]
    raise UdcError(f"model.weights: {path} contains neither model.safetensors (or its index) nor pytorch_model.bin")


def _read_file(path: Path) -> Any:
    _check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise UdcError(f"model.weights: {path} is damaged or not a checkpoint") from None
        raise UdcError(
            f"model.weights: {path} contains objects that can execute code when they are loaded, so it is not read; "
            "convert it to safetensors or to a plain state_dict"
        ) from None
    except Exception as error:  # the unpickler raises whatever a damaged file makes it do
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UdcError(f"model.weights: {path} cannot be read: {reason}") from None


def _check_file(path: Path) -> None:
    """Check what a file would take in memory, before anything of it is loaded.

    Raises
    ------
    UdcError
        It is larger than the memory, or would be: PyTorch does not compress its archives, and a compressed one, or one
        whose entries overlap, can be made to fill any memory.
    """
    with open_regular(path, _ADVICE) as (handle, size):
        check_fits_memory(size, path)
        if path.suffix == ".safetensors":
            read_header(handle, size, str(path), _ADVICE)
            return
        if not zipfile.is_zipfile(handle):
            return
        try:
            entries = zipfile.ZipFile(handle).infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise UdcError(f"{path}: cannot be read ({error}); {_ADVICE}") from None
        pickles = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
        is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if is_compressed or sum(entry.file_size for entry in entries) > size or pickles > _MAX_PICKLE:
            raise UdcError(f"{path}: is an archive that would be larger in memory than on disk, or has more than "
                           f"{_MAX_PICKLE:,} bytes of pickles; {_ADVICE}")  # fmt: skip


def _state_dict(checkpoint: Any) -> State:
    """The state dict in a checkpoint: an entry of it, beside other results of training, or the checkpoint itself."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(checkpoint, Mapping):
            return {}
        entries = (checkpoint.get(key) for key in ("state_dict", "model", "model_state_dict"))
        inner = next((entry for entry in entries if isinstance(entry, Mapping)), None)
        if inner is None:
            break
        checkpoint = inner
    return {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def weights_sha256(path: Path, expected: str | None = None) -> str:
    """SHA-256 of the file of a checkpoint; of several files, that of their SHA-256.

    Raises
    ------
    UdcError
        The file is missing, damaged in the cache of Hugging Face, or another one than ``expected``.
    """
    digests = []
    for file in _weight_files(path):
        with open_regular(file, _ADVICE) as (_, size):
            check_fits_memory(size, file)  # a sparse file of any size could be read for ever
        digests.append(sha256_of(file))
        check_cached_blob(file, digests[-1], "model.weights: ")
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if expected is not None and sha256 != expected:
        raise UdcError(
            f"model.weights: {path} is another file: its SHA-256 is {sha256}, but model.weights_sha256 is {expected}; "
            "restore that file, or train with this one (dvc repro -f resolve)"
        )
    return sha256


def _mismatch(key: str, tensor: Tensor, model_tensor: Tensor) -> str:
    if key.startswith("classifier") and tensor.ndim and tensor.shape[0] != model_tensor.shape[0]:
        return f"head for {tensor.shape[0]} classes, the model has {model_tensor.shape[0]}"
    return f"shape {tuple(tensor.shape)}, the model has {tuple(model_tensor.shape)}"
