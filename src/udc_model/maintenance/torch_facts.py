"""PyTorch on this machine, as JSON: ``python -m udc_model.maintenance.torch_facts [PROJECT]``.

It is a process of its own, because a PyTorch that does not fit the machine can end the process that imports it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from udc_model.files import Workspace


def facts(project: Path | None) -> dict[str, Any]:
    """Version and build of PyTorch, GPUs, threads; why the project's training run does not fit into memory."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "gpus": [f"{torch.cuda.get_device_name(k)} ({torch.cuda.get_device_properties(k).total_memory / 2**30:.0f} GiB)"
                 for k in range(count)],
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        "memory": None if project is None else _lack_of_memory(project),
    }  # fmt: skip


def _lack_of_memory(project: Path) -> str | None:
    """The message of the check that stage ``train`` makes; None if the model fits or this cannot be known yet."""
    if not (Workspace(project).prepared / "dataset.json").is_file():
        return None
    from udc_model.config import load_params
    from udc_model.errors import UdcError
    from udc_model.stages.resolve import read_dataset_info
    from udc_model.training.hardware import memory_of, pick_hardware
    from udc_model.training.setup import check_memory

    try:
        params = load_params(project / "params.yaml")
        classes = read_dataset_info(Workspace(project))["classes"]
        device = pick_hardware(params.train).device
    except (UdcError, KeyError):
        return None  # other checks report it
    try:
        check_memory(params, classes, memory_of(device), device.type == "cpu", params.train.processes)
    except UdcError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
