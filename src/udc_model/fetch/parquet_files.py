"""Which Parquet files of a Hugging Face data set belong to which split, and which of their columns to read."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from udc_model.data.sources.records import SPLIT_NAMES
from udc_model.errors import UdcError

if TYPE_CHECKING:
    import pyarrow

_SPLIT = re.compile(rf"(?:^|[/._ -])({'|'.join(SPLIT_NAMES)})(?=$|[/._ \d-])", re.IGNORECASE)
_SHARD = re.compile(r"^(.*)-\d{5}-of-(\d{5})(.*)$")
_LABEL_NAMES = ("label", "labels", "class", "category")  # of columns without the type ClassLabel


@dataclass(frozen=True)
class Columns:
    """The columns of images and labels; ``names`` are the class names by number, None if values are the names."""

    image: str
    label: str
    names: list[str] | None


def files_by_split(files: list[str], card: dict[str, Any], config: str | None, name: str) -> dict[str, list[str]]:
    """Parquet files by split, in the order of their names.

    The ``configs`` of the card decide; without them the names of folders and files, as for the library ``datasets``.

    Parameters
    ----------
    files : all files of the repository.
    card : the YAML header of its README.md.
    config : the configuration (subset) to use; None if there is one only, or a default one.
    name : of the data set, for messages.

    Raises
    ------
    UdcError
        There are no Parquet files, several configurations, or a file is missing.
    """
    parquet = [file for file in files if file.endswith(".parquet")]
    if not parquet:
        kinds = sorted({PurePosixPath(file).suffix for file in files} - {"", ".md"})
        is_script = any("/" not in file and file.endswith(".py") for file in files)
        problem = "is loaded by a script, which is never run" if is_script else f"has only {', '.join(kinds)} files"
        raise UdcError(f"{name}: has no Parquet files ({problem}); the hub may have converted it: try "
                       f"{name.partition('@')[0]}@refs/convert/parquet")  # fmt: skip
    configurations = _from_card(parquet, card) or _from_folders(parquet)
    splits = configurations[_chosen(configurations, card, config, name)]
    for split, members in splits.items():
        _check_shards(members, f"{name}: split {split}")
    return splits


def _from_card(parquet: list[str], card: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Files by configuration and split, from ``configs`` of the card."""
    configurations = {}
    for entry in card.get("configs") or []:
        if not isinstance(entry, dict) or "data_files" not in entry:
            continue
        splits: dict[str, list[str]] = defaultdict(list)
        for split, pattern in _patterns(entry["data_files"]):
            files = [file for file in parquet if fnmatchcase(file, pattern.removeprefix("./"))]
            for file in files:
                splits[split or _split_of(file)].append(file)
        if splits:
            configurations[str(entry.get("config_name", "default"))] = dict(splits)
    return configurations


def _patterns(data_files: Any, split: str | None = None) -> Iterator[tuple[str | None, str]]:
    """Split and path pattern of each entry of ``data_files``, in each of its forms."""
    if isinstance(data_files, str):
        yield split, data_files
    elif isinstance(data_files, list):
        for entry in data_files:
            if isinstance(entry, dict):
                yield from _patterns(entry.get("path"), str(entry.get("split")))
            else:
                yield from _patterns(entry, split)
    elif isinstance(data_files, dict):
        for key, value in data_files.items():
            yield from _patterns(value, str(key))


def _from_folders(parquet: list[str]) -> dict[str, dict[str, list[str]]]:
    """Files by configuration and split, from their paths: several top folders that are no splits are configurations."""
    tops = {file.partition("/")[0] if "/" in file else "" for file in parquet}
    are_configurations = len(tops) > 1 and not any(_SPLIT.search(top) for top in tops)
    configurations: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in parquet:
        top, _, rest = file.rpartition("/") if not are_configurations else file.partition("/")
        configuration, path = (top, rest) if are_configurations else ("default", file)
        configurations[configuration][_split_of(path)].append(file)
    return {name: dict(splits) for name, splits in configurations.items()}


def _split_of(path: str) -> str:
    """The split that a path names, in its last part if possible; ``train`` if it names none."""
    matches = _SPLIT.findall(path)
    return matches[-1].lower() if matches else "train"


def _chosen(configurations: dict[str, Any], card: dict[str, Any], config: str | None, name: str) -> str:
    if config is not None:
        if config not in configurations:
            raise UdcError(f"--config: {name} has no configuration {config!r}; it has {', '.join(configurations)}")
        return config
    defaults = [str(entry.get("config_name")) for entry in card.get("configs") or []
                if isinstance(entry, dict) and entry.get("default")]  # fmt: skip
    for candidate in [*defaults, "default", *(configurations if len(configurations) == 1 else [])]:
        if candidate in configurations:
            return candidate
    raise UdcError(f"{name}: has the configurations {', '.join(configurations)}; choose one with --config")


def _check_shards(files: list[str], where: str) -> None:
    """Check that no file of a numbered series is missing, as after an interrupted download."""
    counts: dict[tuple[str, int, str], int] = defaultdict(int)
    for file in files:
        if match := _SHARD.match(file):
            counts[match[1], int(match[2]), match[3]] += 1
    for (stem, total, _), count in counts.items():
        if count != total:
            raise UdcError(f"{where}: {count} of {total} files {stem}-… are there; fetch again with network access")


def find_columns(
    schema: pyarrow.Schema, card: dict[str, Any], image: str | None, label: str | None, name: str
) -> Columns:
    """The columns of images and labels of a Parquet file.

    Parameters
    ----------
    schema : of the file; its metadata describes the columns, or else the card does.
    image, label : names of the columns; None to find them.

    Raises
    ------
    UdcError
        A column does not exist, or there is none or several.
    """
    features = _features_of_schema(schema) or _features_of_card(card)
    images = [field.name for field in schema if _is_image(field.type)]
    labels = [field.name for field in schema if features.get(field.name)]
    labels = labels or [field.name for field in schema if field.name in _LABEL_NAMES and _is_value(field.type)]
    image_column = _only(images, image, "--image", "of images", images, name)
    values = [field.name for field in schema if _is_value(field.type)]
    label_column = _only(labels, label, "--label", "of labels", values, name)
    return Columns(image_column, label_column, features.get(label_column))


def _only(found: list[str], chosen: str | None, option: str, kind: str, allowed: list[str], name: str) -> str:
    """The column that an option names, or the only one found."""
    if chosen is not None:
        if chosen not in allowed:
            raise UdcError(f"{option}: {name} has no such column {kind} {chosen!r}; it has {', '.join(allowed)}")
        return chosen
    if not found:
        advice = f"name one with {option}: {', '.join(allowed)}" if allowed else "it cannot be used"
        raise UdcError(f"{name}: has no column {kind}; {advice}")
    if len(found) > 1:
        raise UdcError(f"{name}: has several columns {kind}: {', '.join(found)}; choose one with {option}")
    return found[0]


def _is_image(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(k).name for k in range(kind.num_fields)}
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_value(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _features_of_schema(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Class names of the columns of type ClassLabel, from the metadata that the library ``datasets`` writes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {column: _as_names(feature["names"]) for column, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}  # fmt: skip
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _features_of_card(card: dict[str, Any]) -> dict[str, list[str]]:
    """Class names of the columns of type ClassLabel, from ``dataset_info`` of the card."""
    entries = card.get("dataset_info")
    found = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        for feature in entry.get("features") or [] if isinstance(entry, dict) else []:
            kind = feature.get("dtype") if isinstance(feature, dict) else None
            if isinstance(kind, dict) and "class_label" in kind:
                found[str(feature.get("name"))] = _as_names((kind["class_label"] or {}).get("names"))
    return found


def _as_names(names: Any) -> list[str]:
    """Class names by number, from a list or a mapping from numbers."""
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names or []]
