"""The one-file JSON configuration: ``python train.py --config config/convnext_example.json``.

Every key is mapped to the typed parameters; the same stages run as with DVC.
"""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udc_model.config import COST_SENSITIVE_LOSSES, Params, validate_params
from udc_model.config.presets import find_preset
from udc_model.errors import UdcError
from udc_model.files import read_json

logger = logging.getLogger(__name__)

_LOSSES = {
    "cross_entropy": "cross_entropy",
    "seesaw": "seesaw",
    "cost_matrix_cross_entropy": "legacy_cost_matrix_cross_entropy",
    "logit_adjustment": "legacy_logit_adjustment",
    "logit_adjustment_regularized": "legacy_logit_adjustment_regularized",
}
_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
# Keys whose value becomes that of one parameter.
_PARAMETERS = {
    "num_labels": "model.num_labels",
    "weights": "model.weights",
    "learning_rate": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "weight_decay": "train.weight_decay",
    "warmup_ratio": "train.warmup_ratio",
    "num_frozen_stages": "train.num_frozen_stages",
    "early_stopping_patience": "train.early_stopping_patience",
    "seed": "seed",
}
_KEYS = {
    *_PARAMETERS, "model_type", "model", "lr_scheduler_type", "loss_function", "cost_matrix", "dataset", "dataset_host",
    "local_folder_path", "local_dataset_format", "output_dir", "wandb", "push_to_hub",
}  # fmt: skip
# Keys of services that this project does not have, and what it does instead.
_UNSUPPORTED = {"wandb": "runs are recorded with MLflow", "push_to_hub": "models are logged to MLflow"}


@dataclass(frozen=True)
class JsonConfig:
    """A JSON configuration as typed parameters, and the folder for the results."""

    params: Params
    output_dir: Path


def load_json_config(path: str | Path) -> JsonConfig:
    """Read a one-file configuration.

    Raises
    ------
    UdcError
        The file is missing or not a JSON object, a key is unknown, or a value is not allowed.
    """
    path = Path(path)
    config = read_json(path, "name a configuration as config/convnext_example.json")
    unknown = sorted(set(config) - _KEYS)
    if unknown:
        raise UdcError(f"{path}: unknown key(s) {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    config = {key: _BOOLEANS.get(value, value) if isinstance(value, str) else value for key, value in config.items()}
    try:
        raw = _map(config)
    except UdcError as error:
        raise UdcError(f"{path}: {error}") from None
    return JsonConfig(validate_params(raw, str(path)), Path(_text(config, "output_dir", "results")))


_BOOLEANS: dict[str, bool] = {"True": True, "False": False, "true": True, "false": False}


def _map(config: dict[str, Any]) -> dict[str, Any]:
    """The keys as sections of ``params.yaml``."""
    for key, instead in _UNSUPPORTED.items():
        if config.get(key) not in (None, False):
            raise UdcError(f"{key}: is not part of this project ({instead}); set it to false or remove it")
    raw: dict[str, Any] = {"data": {}, "model": {}, "train": {}, "evaluate": {}, "costs": {}}
    for key, target in _PARAMETERS.items():
        if key in config:
            section, _, name = target.rpartition(".")
            (raw[section] if section else raw)[name] = _parameter_value(key, config[key])
    _map_model(config, raw)
    _map_data(config, raw)
    if "lr_scheduler_type" in config:
        raw["train"]["schedule"] = _one_of(config, "lr_scheduler_type", _SCHEDULES)
    _map_loss(config, raw)
    return raw


def _parameter_value(key: str, value: Any) -> Any:
    if key == "num_train_epochs" and isinstance(value, float) and value.is_integer():
        return int(value)
    if key == "weights" and value == "":
        return None
    return value


def _map_model(config: dict[str, Any], raw: dict[str, Any]) -> None:
    model_type = _one_of(config, "model_type", {"resnet": "resnet", "convnext": "convnext"}, default="resnet")
    raw["model"]["model_type"] = model_type
    if "model" in config:
        name = _text(config, "model", "")
        try:
            preset = find_preset(name)
        except ValueError as error:
            raise UdcError(f"model: {error}") from None
        raw["model"]["preset"] = name
        raw["data"] |= {"image_size": preset.image_size, "crop_pct": preset.crop_pct}
    else:
        raw["data"] |= {"image_size": 224, "crop_pct": 0.875}


def _map_data(config: dict[str, Any], raw: dict[str, Any]) -> None:
    host = _text(config, "dataset_host", "local_folder")
    if host == "digits":
        raw["data"]["source"] = "digits"
        return
    if host not in ("local_folder", "local"):
        raise UdcError(f"dataset_host: {host!r} is neither 'local_folder' nor 'digits'; this project does not "
                       "download data: fetch it, then set local_folder_path to its folder")  # fmt: skip
    if "local_folder_path" not in config:
        raise UdcError("local_folder_path: is missing; set it to the folder of the images")
    source = _one_of(config, "local_dataset_format", {"folder": "folder", "csv": "csv"}, default="folder")
    folder = Path(_text(config, "local_folder_path", ""))
    raw["data"] |= {"source": source, "path": str(folder)}
    if source == "csv":
        raw["data"] |= _csv_layout(folder)


def _csv_layout(folder: Path) -> dict[str, Any]:
    """The CSV files of a folder; `test_dataset.csv` is the test split, as in the original repository."""
    names = sorted(path.name for path in folder.glob("*.csv"))
    if not names:
        raise UdcError(f"local_folder_path: {folder} contains no CSV file")
    if "train_dataset.csv" in names:
        names.remove("train_dataset.csv")
        names.insert(0, "train_dataset.csv")
    files = [{"file": name, "split": "test"} if name == "test_dataset.csv" else name for name in names]
    try:
        with (folder / names[0]).open(encoding="utf-8-sig", newline="") as handle:
            columns = next(csv.reader(handle), [])
    except UnicodeError:
        raise UdcError(f"{folder / names[0]}: is not UTF-8 text; convert the table to UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UdcError(f"{folder / names[0]}: cannot be read as a table: {error}") from None
    older = "label" not in columns and "binary_label" in columns
    return {"csv_files": files, "label_column": "binary_label" if older else "label"}


def _map_loss(config: dict[str, Any], raw: dict[str, Any]) -> None:
    name = _one_of(config, "loss_function", _LOSSES, default="cross_entropy")
    sensitive = name in COST_SENSITIVE_LOSSES
    raw["loss"] = {"name": name}
    matrix = config.get("cost_matrix")
    if matrix is not None and not _all_zero(matrix):
        raw["costs"]["matrix"] = [[float(x) if _is_number(x) else x for x in row] for row in _rows(matrix)]
    elif sensitive:
        raise UdcError(f"cost_matrix: the loss {config['loss_function']} needs costs that are not all 0")
    elif matrix is not None:
        logger.warning("cost_matrix: all costs are 0, so it is ignored; every mistake costs 1")
    if sensitive:
        # These losses distort the probabilities by the costs; least expected cost would count the costs twice.
        raw["evaluate"]["decision"] = "argmax"


def _rows(matrix: Any) -> list[list[Any]]:
    if not isinstance(matrix, list) or not all(isinstance(row, list) for row in matrix):
        raise UdcError(f"cost_matrix: must be a list of rows, got {matrix!r}")
    return matrix


def _all_zero(matrix: Any) -> bool:
    return all(x == 0 for row in _rows(matrix) for x in row)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(config: dict[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or not value:
        raise UdcError(f"{key}: must be a non-empty string, got {value!r}")
    return value


def _one_of(config: dict[str, Any], key: str, allowed: dict[str, str], default: str | None = None) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in allowed:
        raise UdcError(f"{key}: must be one of {', '.join(allowed)}; got {value!r}")
    return allowed[value]
