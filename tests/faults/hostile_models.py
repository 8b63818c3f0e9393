"""Model folders that must be refused: seeded changes of a valid folder, one for each file, field and bad value."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

Change = Callable[[Path], None]  # changes a folder with model/ and evaluation/

_NUMBERS = [10**9, -1, 0, 2**63, 10**400, float("nan"), float("inf"), float("-inf"), 0.5, "64", None, [], {}, True]
_LISTS = [[], [-1], [10**9] * 3, [float("nan")] * 3, ["8"] * 3, [None] * 3, [[8]] * 3, [8] * 10_000, 8, "8", None, {}]
_TEXTS = ["gellu", "", "x" * 10**6, 5, None, [], {}, True, "../../etc/passwd"]
_SWITCHES = ["yes", 1, None, [], float("nan")]
_LABELS = [{}, {"0": "a"}, {"0": "a", "2": "b"}, {"-1": "a", "0": "b"}, {"x": "a", "0": "b"}, ["a", "b"], "ab", 5, None,
           {"0": 1, "1": 2}, {"0": "a", "1": None}, {str(i): "c" for i in range(70_000)}]  # fmt: skip
_CONFIG = {
    "resnet": {
        "num_channels": [*_NUMBERS, 20_000, 4, 1], "embedding_size": [*_NUMBERS, 16],
        "hidden_sizes": [*_LISTS, [16, 16]],
        "depths": [*_LISTS, [-1, -1], [1, 2], [1, 1001], [1, 1, 1]], "layer_type": [*_TEXTS, "bottleneck"],
        "hidden_act": _TEXTS, "downsample_in_first_stage": [*_SWITCHES, True], "downsample_in_bottleneck": _SWITCHES,
        "id2label": _LABELS, "label2id": [{"a": 5}, {"c": 0}, {"a": -1}, {"a": "0"}, [], "a", 5],
        "model_type": [*_TEXTS, "convnext", "vit"], "problem_type": ["guess", 5, [], True],
        "output_hidden_states": _SWITCHES, "return_dict": _SWITCHES,
    },
    "convnext": {
        "num_channels": [*_NUMBERS, 20_000], "patch_size": [*_NUMBERS, 2], "num_stages": [*_NUMBERS, 1, 3],
        "hidden_sizes": [*_LISTS, [16, 16]], "depths": [*_LISTS, [-1, -1], [2, 1]], "hidden_act": _TEXTS,
        "layer_norm_eps": [-1, 0, float("nan"), float("inf"), "x", None, []],
        "layer_scale_init_value": [-1, 0, float("nan"), "x", None], "drop_path_rate": [-0.1, 1, 2, float("nan"), "x"],
        "initializer_range": [-1, float("nan"), 10**9, "x", None], "id2label": _LABELS,
        "model_type": [*_TEXTS, "resnet"],
    },
    "ensemble": {
        "temperatures": [*_LISTS, [1.0], [1.0] * 3, [1.0] * 21, [0, 1], [1, -1], [1e-300, 1], [1, float("inf")],
                         [True, 1]],
        "member_type": [*_TEXTS, "convnext", "ensemble"], "model_type": ["resnet", "convnext", "Ensemble"],
        "num_channels": [*_NUMBERS, 20_000, 4, 1], "depths": [[-1, -1], [1, 2], [1, 1001]], "id2label": _LABELS,
    },
}  # fmt: skip
_PREPROCESSOR = {
    "size": [-5, 224, None, [], "8", {}, {"shortest_edge": -5}, {"shortest_edge": 0}, {"shortest_edge": 10**9},
             {"shortest_edge": 2.5}, {"shortest_edge": "8"}, {"height": 8, "width": 9}, {"height": 8},
             {"shortest_edge": float("nan")}],
    "crop_pct": [-1, 0, 1e-12, 2, float("nan"), float("inf"), "x", []],
    "resample": [-1, 0, 4, 99, None, "bicubic", 2.5, float("nan"), []],
    "image_mean": [[], [0.5], [0.5] * 4, [float("nan")] * 3, [1e300] * 3, 0.5, "x", None, [None] * 3, [[0.5]] * 3],
    "image_std": [[], [0.5], [0.5] * 4, [0, 0, 0], [-1, 1, 1], [float("nan")] * 3, [1e-300] * 3, 0.5, None],
    "udc_decoding": [
        5, [], "x", {"channels": 20_000}, {"channels": -1}, {"channels": 1}, {"channels": "3"}, {"frames": "all"},
        {"frames": 5}, {"intensity": [1]}, {"intensity": [5, 1]}, {"intensity": [float("nan"), 1]}, {"intensity": "x"},
        {"dicom_windows": "no"}, {"max_pixels": -1}, {"max_pixels": 10**30}, {"max_pixels": float("inf")},
        {"max_pixels": None}, {"frame": "error"},
    ],
}  # fmt: skip
_POLICY = {
    "classes": [[], ["a"], ["a", "a"], ["b", "a"], ["a", "b", "c"], "ab", None, [1, 2], ["a", None], {"a": 0}],
    "class_costs": [[], [[0, 1]], [[0, 1], [1]], [[0, float("nan")], [1, 0]], [[0, float("inf")], [1, 0]], "x", None, 5,
                    [[0, 1e300], [1, 0]], [["0", "1"], ["1", "0"]], [[0] * 3] * 3, [[[0]]]],
    "decision": [*_TEXTS, "recall_floor"],
    "calibration": [None, [], {"method": "magic"}, {"method": "temperature", "parameters": {}},
                    *({"method": "temperature", "parameters": {"temperature": t}}
                      for t in (0, -1, float("nan"), float("inf"), "1", None, [1])),
                    {"method": "vector", "parameters": {"weight": [1], "bias": [0, 0]}},
                    {"method": "dirichlet", "parameters": {"weight": [[1]], "bias": [0, 0]}},
                    {"method": "isotonic", "parameters": {"x": [[0, 1], [1, 0]], "y": [[0.1, 0.9], [0.1, 0.9]]}},
                    {"method": "isotonic", "parameters": {"x": [[0], []], "y": [[1], []]}}],
    "refer": [float("nan"), float("inf"), "x", [], {}, 1e300],
    "actions": [None, [], "x", {"x": 1}, {"x": [1]}, {"x": [1, float("nan")]}, {"x": [1, 1e300]}, {"a": [1, 1]},
                {"": [1, 1]}, {"x\x1b": [1, 1]}, {str(i): [1, 1] for i in range(99)}],
    "training_prior": [[], [1], [0, 0], [-1, 2], [float("nan")] * 2, "x", 5, [None, 1]],
    "deployment_prior": [[0.5], [0, 0], [2, -1], [float("nan")] * 2, "x"],
    "recall_floor": [5, "x", {}, {"class": "z", "floor": 0.5, "confidence": 0.5, "surcharge": 1},
                     {"class": "a", "floor": 0.5, "confidence": 0.5, "surcharge": 1}],
    "flip_averaging": _SWITCHES,
    "precision": ["", "int3", "auto", 5, None, [], True],
    "model_sha256": ["", "x", 5, "0" * 64, [], "A" * 64],
}  # fmt: skip
_BYTES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "text": lambda path: path.write_text("model: yes\n"),
    "list": lambda path: path.write_text("[]"),
    "not UTF-8": lambda path: path.write_bytes(b'{"\xff": 1}'),
    "nested": lambda path: path.write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}"),
    "many lists": lambda path: path.write_text('{"a": [' + "[]," * 1_300_000 + "[]]}"),
    "long number": lambda path: path.write_text('{"a": ' + "9" * 1_000_000 + "}"),
    "1 GB": lambda path: _sparse(path, 2**30),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "dangling link": lambda path: (path.unlink(), path.symlink_to("/nonexistent/file")),
    "endless device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "named pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}
_FILES = ("model/config.json", "model/preprocessor_config.json", "model/model.safetensors", "evaluation/policy.json")


def hostile_models(valid: dict[str, Path], seed: int = 0) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Yield descriptions of changed folders in a random order, each with a function that writes the folder.

    Parameters
    ----------
    valid : complete folders with ``model/`` and ``evaluation/``, by ``model_type``.
    """
    cases = [(f"{kind}: {name}", kind, change) for kind in valid for name, change in _changes(kind)]
    random.Random(seed).shuffle(cases)
    for name, kind, change in cases:

        def write(target: Path, kind: str = kind, change: Change = change) -> Path:
            shutil.copytree(valid[kind], target)
            change(target)
            return target

        yield name, write


def _changes(kind: str) -> Iterator[tuple[str, Change]]:
    for file, fields in ((_FILES[0], _CONFIG[kind]), (_FILES[1], _PREPROCESSOR), (_FILES[3], _POLICY)):
        for field, values in fields.items():
            for value in values:
                yield f"{file}: {field} = {str(value)[:40]}", _with_value(file, field, value)
    for file in _FILES:
        for name, damage in _BYTES.items():
            yield f"{file}: {name}", lambda folder, file=file, damage=damage: damage(folder / file)
    for name, change in _HEADERS.items():
        yield f"weights: {name}", lambda folder, change=change: _rewrite_header(folder / _FILES[2], change)
    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield f"weights: header of {length} bytes", lambda folder, length=length: _with_length(folder, length)
    yield "weights: sparse terabyte of a network of this size", _sparse_network


def _with_value(file: str, field: str, value: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    return change


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as handle:
        handle.truncate(size)


def _first(header: dict[str, dict[str, object]]) -> dict[str, object]:
    return next(value for name, value in header.items() if name != "__metadata__")


_EMPTY: dict[str, object] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
_HEADERS: dict[str, Callable[[dict[str, dict[str, object]]], object]] = {
    "negative shape": lambda header: _first(header).update(shape=[-1, 8]),
    "shape of 10^9": lambda header: _first(header).update(shape=[10**9, 10**9]),
    "shape that overflows": lambda header: _first(header).update(shape=[2**53 - 1] * 8),
    "float shape": lambda header: _first(header).update(shape=[0.5]),
    "shape of many": lambda header: _first(header).update(shape=[1] * 100_000),
    "other shape": lambda header: _first(header).update(shape=[1, 1]),
    "no shape": lambda header: _first(header).pop("shape"),
    "unknown type": lambda header: _first(header).update(dtype="COMPLEX"),
    "other type": lambda header: _first(header).update(dtype="I32"),
    "negative offsets": lambda header: _first(header).update(data_offsets=[-4, 0]),
    "offsets behind the end": lambda header: _first(header).update(data_offsets=[2**50, 2**50 + 4]),
    "one offset": lambda header: _first(header).update(data_offsets=[0]),
    "missing weight": lambda header: header.pop(next(name for name in header if name.endswith(".bias"))),
    "weight of another network": lambda header: header.update(other=dict(_EMPTY)),
    "tensor that is a number": lambda header: header.update(other=5),
    "100,000 empty weights": lambda header: header.update(
        {f"w{i}": _EMPTY for i in range(100_000)}
    ),
}  # fmt: skip


def _rewrite_header(path: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    contents = path.read_bytes()
    length = struct.unpack("<Q", contents[:8])[0]
    header = json.loads(contents[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + contents[8 + length :])


def _with_length(folder: Path, length: int) -> None:
    path = folder / _FILES[2]
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def _sparse_network(folder: Path) -> None:
    """Config and header agree on a network of 1.4 TB, whose file has no blocks on the disk."""
    from udc_model.model_files.settings import check_settings
    from udc_model.model_files.shapes import expected_shapes

    path = folder / _FILES[0]
    settings = json.loads(path.read_text())
    count = len(settings["depths"])
    settings |= {"hidden_sizes": [65_536] * count, "depths": [10] * count}
    path.write_text(json.dumps(settings))
    header, position = {}, 0
    for name, shape in expected_shapes(check_settings(settings, "", "")):
        size, dtype = 4, "F32"
        if name.endswith("num_batches_tracked"):
            size, dtype = 8, "I64"
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    weights = folder / _FILES[2]
    weights.write_bytes(struct.pack("<Q", len(text)) + text)
    with weights.open("r+b") as handle:
        handle.truncate(8 + len(text) + position)
