"""Looking at a training before it is run: the learning rate it stands, and where its time goes. Nothing is recorded."""

from __future__ import annotations

from pathlib import Path

from udc_model.config import Params
from udc_model.data.packed import PackedDataset
from udc_model.evaluation.tables import write_csv
from udc_model.files import Workspace
from udc_model.training.profiling import profile_steps
from udc_model.training.range_test import range_test, steepest
from udc_model.training.setup import set_up


def find_learning_rate(
    params: Params, workspace: Workspace, folder: Path, lowest: float, highest: float, steps: int
) -> str:
    """Run the range test on the prepared data; writes ``learning_rates.csv`` and ``.png``, and returns the finding."""
    from udc_model.evaluation.plots import plot_range_test

    session = set_up(params, PackedDataset.open(workspace.prepared))
    table = range_test(session, lowest, highest, steps)
    found = steepest(table)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "learning_rates.csv", folder / "learning_rates.png"]
    write_csv(table, files[0])
    plot_range_test(files[1], table, found)
    end = table["learning_rate"].iloc[-1]
    told = f"the loss falls fastest at a learning rate of {found:.2g}"
    told += f", and diverges above {end:.2g}" if end < highest else ""
    return f"{told} (params.yaml has {params.train.learning_rate:g})\n" + "\n".join(map(str, files)) + "\n"


def profile_training(params: Params, workspace: Workspace) -> str:
    """Two epochs on the prepared data, the second under torch's profiler; returns where the time of a step goes."""
    return profile_steps(set_up(params, PackedDataset.open(workspace.prepared)))
