"""Weights from anywhere: read a checkpoint, bring its keys to our (Hugging Face's) layout, load what fits.

Nothing here ever unpickles code: safetensors, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier

State = dict[str, Tensor]


@dataclass
class WeightsReport:
    """What became of a checkpoint: keys of the model that were ``loaded``, those of the checkpoint that were
    ``converted`` to them (by their own name), ``skipped`` keys of the checkpoint with the reason, ``missing`` keys of
    the model that keep their random start; ``layout`` the checkpoint was in, and the ``sha256`` of its file(s).
    """

    path: str
    sha256: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """The report as text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def summary(self) -> str:
        """One line, with the skipped and the missing keys named."""
        parts = [f"weights from {self.path} ({self.layout}): {len(self.loaded)} loaded"]
        if self.skipped:
            parts.append("skipped " + ", ".join(f"{key} ({reason})" for key, reason in self.skipped.items()))
        if self.missing:
            parts.append(f"left at their random start: {', '.join(self.missing)}")
        return "; ".join(parts)


def load_weights(
    model: ImageClassifier, path: str | Path, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> WeightsReport:
    """Load a checkpoint into a model, as far as names and shapes fit.

    A head for another number of classes is left out.

    Parameters
    ----------
    path : a Hugging Face folder (safetensors, sharded safetensors or ``.bin``), or a ``.safetensors``, ``.bin``,
        ``.pth``, ``.pt`` or ``.ckpt`` file of Hugging Face, torchvision, timm or facebookresearch/ConvNeXt, possibly
        wrapped by Lightning, DistributedDataParallel or torch.compile.
    include, exclude : patterns (``*``, ``?``, ``[…]``) on the model's own names: only what fits one of ``include``
        (None: all) and none of ``exclude`` is loaded.

    Raises
    ------
    UdcError
        The file is missing, damaged, holds code instead of weights, or fits nothing of the model.
    """
    path = Path(path)
    files = _weight_files(path)
    state: State = {}
    for file in files:
        state |= _without_wrapping(_read_file(file))
    layout, renamed = to_our_layout(state, model.config.model_type)
    report = WeightsReport(str(path), _digest(files), layout)
    own = model.state_dict()
    fitting: State = {}
    for original, (key, tensor) in renamed.items():
        if key is None or key not in own:
            report.skipped[original] = "the model has no such weight"
        elif include is not None and not any(fnmatchcase(key, pattern) for pattern in include):
            report.skipped[original] = f"{key} fits no pattern of model.weights_include"
        elif any(fnmatchcase(key, pattern) for pattern in exclude):
            report.skipped[original] = f"{key} is excluded by model.weights_exclude"
        elif tensor.shape != own[key].shape:
            report.skipped[original] = _mismatch(key, tensor, own[key])
        else:
            fitting[key] = tensor
            if key != original:
                report.converted[original] = key
    report.loaded = sorted(fitting)
    report.missing = sorted(key for key in own if key not in fitting and not key.endswith("num_batches_tracked"))
    if not fitting and any("model.weights_" in reason for reason in report.skipped.values()):
        raise UdcError(f"model.weights: the patterns weights_include and weights_exclude leave nothing of {path}")
    if not any(key.endswith("weight") and not key.startswith("classifier") for key in fitting):
        raise UdcError(
            f"model.weights: nothing in {path} fits the {model.config.model_type}; its keys are like "
            f"{', '.join(list(state)[:3])}, the model's like {', '.join(list(own)[:3])}"
        )
    model.load_state_dict(fitting, strict=False)
    return report


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UdcError(f"model.weights: {path}: no such file or folder")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise UdcError(f"model.weights: {index}: is damaged: {error!r}") from None
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise UdcError(f"model.weights: {index}: names files outside its folder: {', '.join(outside)}")
        return [path / name for name in names]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return [path / name]
    raise UdcError(f"model.weights: {path}: holds neither model.safetensors (or its index) nor pytorch_model.bin")


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise UdcError(f"model.weights: {path}: is no checkpoint, or a damaged one") from None
        raise UdcError(
            f"model.weights: {path}: refused, for it holds objects that could run code when they are loaded. "
            "Ask for the weights as safetensors, or as a plain state_dict."
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UdcError(f"model.weights: {path}: cannot be read: {error}") from None


def _without_wrapping(checkpoint: Any) -> State:
    """The state dict inside a checkpoint, without the prefixes that wrappers put before every key."""
    while isinstance(checkpoint, Mapping) and not any(isinstance(value, Tensor) for value in checkpoint.values()):
        inner = next(
            (checkpoint[key] for key in ("state_dict", "model", "model_state_dict") if key in checkpoint), None
        )
        if inner is None:
            break
        checkpoint = inner
    if not isinstance(checkpoint, Mapping):
        return {}
    state = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    while state:
        prefix = next((p for p in ("module.", "_orig_mod.", "model.") if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _mismatch(key: str, tensor: Tensor, own: Tensor) -> str:
    if key.startswith("classifier") and tensor.ndim and tensor.shape[0] != own.shape[0]:
        return f"head for {tensor.shape[0]} classes, the model has {own.shape[0]}"
    return f"shape {tuple(tensor.shape)}, the model has {tuple(own.shape)}"


Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_TORCHVISION_BLOCK = {"0": "dwconv", "2": "layernorm", "3": "pwconv1", "5": "pwconv2"}
_BLOCK = r"convnext.encoder.stages.\1.layers.\2."
_LAYOUTS: dict[str, list[tuple[str, str, list[Rule]]]] = {
    # per architecture: name of the layout, a key that only it has, and rules from its keys to ours
    "convnext": [
        ("Hugging Face", "convnext.embeddings.patch_embeddings.weight", [(r"(.*)", r"\1")]),
        (
            "torchvision",
            "features.0.0.weight",
            [
                (r"features\.0\.0\.(.*)", r"convnext.embeddings.patch_embeddings.\1"),
                (r"features\.0\.1\.(.*)", r"convnext.embeddings.layernorm.\1"),
                (r"features\.([246])\.([01])\.(weight|bias)",
                 lambda m: f"convnext.encoder.stages.{int(m[1]) // 2}.downsampling_layer.{m[2]}.{m[3]}"),
                (r"features\.([1357])\.(\d+)\.(?:block\.(\d)\.(.*)|(layer_scale))",
                 lambda m: f"convnext.encoder.stages.{int(m[1]) // 2}.layers.{m[2]}."
                 + ("layer_scale_parameter" if m[5] else f"{_TORCHVISION_BLOCK[m[3]]}.{m[4]}")),
                (r"classifier\.0\.(.*)", r"convnext.layernorm.\1"),
                (r"classifier\.2\.(.*)", r"classifier.\1"),
            ],
        ),
        (
            "timm",
            "stem.0.weight",
            [
                (r"stem\.0\.(.*)", r"convnext.embeddings.patch_embeddings.\1"),
                (r"stem\.1\.(.*)", r"convnext.embeddings.layernorm.\1"),
                (r"stages\.(\d)\.downsample\.(\d)\.(.*)", r"convnext.encoder.stages.\1.downsampling_layer.\2.\3"),
                (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.(.*)", _BLOCK + r"dwconv.\3"),
                (r"stages\.(\d)\.blocks\.(\d+)\.norm\.(.*)", _BLOCK + r"layernorm.\3"),
                (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc([12])\.(.*)", _BLOCK + r"pwconv\3.\4"),
                (r"stages\.(\d)\.blocks\.(\d+)\.gamma", _BLOCK + "layer_scale_parameter"),
                (r"head\.norm\.(.*)", r"convnext.layernorm.\1"),
                (r"head\.fc\.(.*)", r"classifier.\1"),
            ],
        ),
        (
            "facebookresearch",
            "downsample_layers.0.0.weight",
            [
                (r"downsample_layers\.0\.0\.(.*)", r"convnext.embeddings.patch_embeddings.\1"),
                (r"downsample_layers\.0\.1\.(.*)", r"convnext.embeddings.layernorm.\1"),
                (r"downsample_layers\.(\d)\.(\d)\.(.*)", r"convnext.encoder.stages.\1.downsampling_layer.\2.\3"),
                (r"stages\.(\d)\.(\d+)\.(dwconv|pwconv1|pwconv2)\.(.*)", _BLOCK + r"\3.\4"),
                (r"stages\.(\d)\.(\d+)\.norm\.(.*)", _BLOCK + r"layernorm.\3"),
                (r"stages\.(\d)\.(\d+)\.gamma", _BLOCK + "layer_scale_parameter"),
                (r"norm\.(.*)", r"convnext.layernorm.\1"),
                (r"head\.(.*)", r"classifier.\1"),
            ],
        ),
        ("Hugging Face without head", "embeddings.patch_embeddings.weight", [(r"(.*)", r"convnext.\1")]),
    ],
    "resnet": [
        ("Hugging Face", "resnet.embedder.embedder.convolution.weight", [(r"(.*)", r"\1")]),
        (
            "torchvision or timm",
            "conv1.weight",
            [
                (r"conv1\.weight", "resnet.embedder.embedder.convolution.weight"),
                (r"bn1\.(.*)", r"resnet.embedder.embedder.normalization.\1"),
                (r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(.*)",
                 lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}."
                 f"{'convolution' if m[3] == 'conv' else 'normalization'}.{m[5]}"),
                (r"layer(\d)\.(\d+)\.downsample\.([01])\.(.*)",
                 lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut."
                 f"{'convolution' if m[3] == '0' else 'normalization'}.{m[4]}"),
                (r"fc\.(.*)", r"classifier.1.\1"),
            ],
        ),
        ("Hugging Face without head", "embedder.embedder.convolution.weight", [(r"(.*)", r"resnet.\1")]),
    ],
}  # fmt: skip


def to_our_layout(state: State, model_type: str) -> tuple[str, dict[str, tuple[str | None, Tensor]]]:
    """Recognise a state dict's layout by its keys and rename them.

    Returns
    -------
    The layout's name, and for each original key its name here (None: no rule knows it) and its tensor.
    """
    for name, witness, rules in _LAYOUTS[model_type]:
        if witness in state:
            return name, {key: (_rename(key, rules), _flat_scale(key, tensor)) for key, tensor in state.items()}
    return "unknown", {key: (None, tensor) for key, tensor in state.items()}


def _rename(key: str, rules: list[Rule]) -> str | None:
    for pattern, target in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return target(match) if callable(target) else match.expand(target)
    return None


def _flat_scale(key: str, tensor: Tensor) -> Tensor:
    """torchvision keeps the layer scale as (C, 1, 1), all others as (C,)."""
    return tensor.flatten() if key.endswith("layer_scale") else tensor
