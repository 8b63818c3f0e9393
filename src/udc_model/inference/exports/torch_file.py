"""Files of torch.export (``.pt2``), which torch loads without this project."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from udc_model.errors import UdcError
from udc_model.inference.exports.decision_graph import DecisionGraph, traced

METADATA = "metadata.json"  # in the file


def save_torch(graph: DecisionGraph, example: Tensor, path: Path, metadata: str) -> None:
    """Write a graph with torch.export, and ``metadata`` (JSON) as the extra file `METADATA`.

    The archive has the graph as JSON and tensors as raw bytes. Example inputs, which torch would pickle, are left out.
    """
    program = traced(graph, [example], ("batch",) if graph.prepare is None else ("batch", "height", "width"))
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # has paths on this machine
    with path.open("wb") as handle:
        torch.export.save(program, handle, extra_files={METADATA: metadata})
    check_without_pickle(path)


def check_without_pickle(path: Path) -> None:
    """:class:`UdcError` if a ``.pt2`` file has a part that ``torch.export.load`` unpickles, which can run any code."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            folder, _, name = info.filename.rpartition("/")
            is_pickle = folder.endswith("/sample_inputs") and info.file_size > 0
            if name.endswith("_config.json"):
                payloads = json.loads(archive.read(info)).get("config", {}).values()
                is_pickle = any(payload.get("use_pickle") for payload in payloads)
            if is_pickle:
                raise UdcError(f"{path}: its part {info.filename[:200]} is a pickle, which can run any code")


def load_torch(path: Path) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
    """A function from the input of a file that was written here to its outputs by name."""
    with path.open("rb") as handle:
        module = torch.export.load(handle).module()

    def decide(image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            return {name: value.numpy() for name, value in module(torch.from_numpy(image)).items()}

    return decide
