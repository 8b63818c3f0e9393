"""Writes published weights to a file or folder, which can be copied to a machine without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from udc_model.config.presets import PRESETS
from udc_model.errors import UdcError
from udc_model.files import atomic_file, sha256_of
from udc_model.model_files.timm_networks import published_config
from udc_model.models.checkpoints import weights_sha256
from udc_model.models.hub import HUB_NAME, SAFETENSORS, HubWeights, UnreachableError, cached_snapshot, download
from udc_model.models.pretrained import preprocessor_file, read_preprocessing


def fetch_weights(name: str, target: Path) -> tuple[HubWeights, list[Path]]:
    """Download published weights, or find them in the cache if the hub cannot be reached, and write them.

    Parameters
    ----------
    name : repository on the Hugging Face hub, preset, or name of a network of timm.
    target : a file ``*.safetensors``, beside which the preprocessing is written, or a folder.

    Returns
    -------
    What the hub states about the weights, and the files that were written.

    Raises
    ------
    UdcError
        There are no such weights, they cannot be downloaded, they are damaged, or the target has other contents.
    """
    repository = _repository(name)
    try:
        weights = download(repository)
    except UnreachableError:
        if (snapshot := cached_snapshot(repository, [SAFETENSORS])) is None:
            raise
        sha256 = weights_sha256(snapshot)
        size = (snapshot / SAFETENSORS).stat().st_size
        weights = HubWeights(repository, snapshot, {SAFETENSORS: (size, sha256)}, None)
    if target.suffix == ".safetensors":
        return weights, _write_file(weights, target)
    target.mkdir(parents=True, exist_ok=True)
    files = [each for each in sorted(weights.folder.iterdir()) if each.name in weights.files or each.suffix == ".json"]
    return weights, [_copy(each, target / each.name) for each in files]


def _repository(name: str) -> str:
    if HUB_NAME.fullmatch(name):
        return name
    if name in PRESETS:
        repository = PRESETS[name].published
    elif "/" in name:
        raise UdcError(f"{name}: is no repository of the Hugging Face hub; name one as microsoft/resnet-18")
    else:
        repository = published_config(name).repository
    if repository is None:
        raise UdcError(f"{name}: no weights are published; presets with weights: "
                       f"{', '.join(each for each, preset in PRESETS.items() if preset.published)}")  # fmt: skip
    return repository


def _write_file(weights: HubWeights, target: Path) -> list[Path]:
    """Copy the one file of the weights, and write the preprocessing beside it, if it is recorded."""
    if list(weights.files) != [SAFETENSORS]:
        raise UdcError(f"{target}: {weights.name} has {len(weights.files)} files of weights; name a folder instead")
    target.parent.mkdir(parents=True, exist_ok=True)
    written = [_copy(weights.folder / SAFETENSORS, target)]
    if (recorded := read_preprocessing(weights.folder)) is not None:
        size, mean, std = recorded
        values = {"size": {"shortest_edge": size}, "image_mean": list(mean), "image_std": list(std)}
        written.append(preprocessor_file(target))
        with atomic_file(written[-1]) as scratch:
            scratch.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return written


def _copy(source: Path, target: Path) -> Path:
    """Copy a file; nothing that has other contents is overwritten."""
    if target.exists():
        if not target.is_file() or sha256_of(target) != sha256_of(source):
            raise UdcError(f"{target}: exists and is another file; remove it, or write elsewhere (--to)")
        return target
    with atomic_file(target) as scratch:
        shutil.copyfile(source, scratch)
    return target
