"""Key layouts of other libraries' checkpoints, and rules that rename their keys to ours."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

State = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
KeyLayout = tuple[str, str, list[Rule]]  # its name, a key that only this layout has, rules that rename its keys

# of DistributedDataParallel, torch.compile and modules of Lightning, in any order
_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.|model\.)*")
_TORCHVISION_BLOCK = {"0": "dwconv", "2": "layernorm", "3": "pwconv1", "5": "pwconv2"}
_BLOCK = r"convnext.encoder.stages.\1.layers.\2."
LAYOUTS: dict[str, list[KeyLayout]] = {  # by architecture
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


def to_our_layout(state: State, layouts: list[KeyLayout]) -> tuple[str, dict[str, tuple[str | None, Tensor]]]:
    """Detect the layout of a state dict by its keys and rename the keys to ours, which is Hugging Face's.

    The prefix that a wrapper of the model adds to its keys is removed. Keys without it belong to something else, as the
    ``criterion.weight`` of a module of Lightning, whose model has the keys ``model.…``.

    Parameters
    ----------
    state : the state dict.
    layouts : those that the architecture may have.

    Returns
    -------
    The name of the layout, and by original key the new key (None if no rule applies) and the tensor.
    """
    for name, marker, rules in layouts:
        prefix = _wrapper_prefix(state, marker)
        if prefix is not None:
            return name, {
                key: (_rename(key.removeprefix(prefix), rules) if key.startswith(prefix) else None, tensor)
                for key, tensor in state.items()
            }
    return "unknown", {key: (None, tensor) for key, tensor in state.items()}


def _wrapper_prefix(state: State, marker: str) -> str | None:
    """The shortest prefix of wrappers with which a state dict has the key ``marker``; None if it has no such key."""
    prefixes = (key.removesuffix(marker) for key in state if key.endswith(marker))
    return min(filter(_WRAPPERS.fullmatch, prefixes), key=len, default=None)


def _rename(key: str, rules: list[Rule]) -> str | None:
    for pattern, target in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return target(match) if callable(target) else match.expand(target)
    return None
