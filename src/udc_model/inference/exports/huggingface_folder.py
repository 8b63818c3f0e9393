"""Folders that Hugging Face transformers loads, with the policy and the model card beside the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from udc_model.decisions.policy import POLICY_FILE, Policy
from udc_model.errors import UdcError
from udc_model.inference.exports.decision_graph import Network
from udc_model.inference.stored_model import StoredModel
from udc_model.model_files.folder import CONFIG, WEIGHTS
from udc_model.models.factory import load_model

_SHARED = ("resnet", "convnext")  # model types that transformers has under the same names


def check_supported(stored: StoredModel) -> None:
    """Raise :class:`UdcError` unless transformers has the architecture."""
    kind = stored.model.settings["model_type"]
    if kind not in _SHARED:
        raise UdcError(f"--to safetensors-hf: transformers has no model of model_type {kind}; use --to onnx")
    if stored.policy.refers_unfamiliar:
        raise UdcError("--to safetensors-hf: does not recognise unfamiliar images, which costs.unfamiliar refers to a "
                       "person; use --to onnx")  # fmt: skip


def save_huggingface(stored: StoredModel, folder: Path, card: str) -> None:
    """Write config.json, weights, preprocessor_config.json, policy.json and, unless it is empty, the model card."""
    settings = json.dumps(stored.model.settings, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG).write_text(settings + "\n", encoding="utf-8")
    (folder / WEIGHTS).write_bytes(stored.model.weights)
    stored.preprocessing.save(folder)
    policy = replace(stored.policy, familiarity=None)
    (folder / POLICY_FILE).write_text(policy.to_json(), encoding="utf-8")
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")


def load_huggingface(folder: Path) -> tuple[Callable[[NDArray[Any]], dict[str, NDArray[Any]]], str]:
    """A function from normalised inputs (N, C, size, size) to the policy's decisions, and the library that loads it.

    The library is transformers if it is installed, and this project otherwise.
    """
    try:
        import transformers
    except ImportError:
        model, library = load_model(folder), "udc-model (transformers is not installed)"
    else:
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        library = f"transformers {transformers.__version__}"
    policy = Policy.load(folder)
    network = Network(model, policy.flip_averaging)

    def decide(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            logits = torch.as_tensor(network(torch.from_numpy(values))).numpy()
        decided = policy.apply(logits)
        return {"decision": decided.decided, "probabilities": decided.probabilities, "logits": logits}

    return decide, library
