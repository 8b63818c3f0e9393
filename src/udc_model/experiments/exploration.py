"""Commands that look at a training run before it is started: learning rate and profile. Nothing is recorded."""

from __future__ import annotations

from pathlib import Path

from udc_model.config import Params
from udc_model.data.packed import PackedDataset
from udc_model.evaluation.tables import write_csv
from udc_model.files import Workspace, make_folder
from udc_model.training.profiling import profile_steps
from udc_model.training.range_test import range_test, steepest
from udc_model.training.session import TrainingSession
from udc_model.training.setup import set_up


def find_learning_rate(
    params: Params, workspace: Workspace, folder: Path, lowest: float, highest: float, steps: int
) -> str:
    """Run the range test on the prepared data; write ``learning_rates.csv`` and ``.png`` to ``folder``.

    Parameters
    ----------
    lowest, highest : learning rates of the first and the last step.
    steps : number of steps.

    Returns
    -------
    The result as text.
    """
    from udc_model.evaluation.plots import plot_range_test

    session = _session(params, workspace)
    table = range_test(session, lowest, highest, steps)
    rate = steepest(table)
    make_folder(folder)
    files = [folder / "learning_rates.csv", folder / "learning_rates.png"]
    write_csv(table, files[0])
    plot_range_test(files[1], table, rate)
    end = table["learning_rate"].iloc[-1]
    text = f"the loss falls fastest at a learning rate of {rate:.2g}"
    text += f", and diverges above {end:.2g}" if end < highest else ""
    return f"{text} (params.yaml has {params.train.learning_rate:g})\n" + "\n".join(map(str, files)) + "\n"


def profile_training(params: Params, workspace: Workspace) -> str:
    """Train two epochs on the prepared data, the second under torch's profiler; returns the time of a step by part."""
    return profile_steps(_session(params, workspace))


def _session(params: Params, workspace: Workspace) -> TrainingSession:
    """A session of this process alone: nothing is shared, whatever the number of processes of the training run is."""
    train = params.train.model_copy(update={"processes": 1, "sharded": False})
    return set_up(params.model_copy(update={"train": train}), PackedDataset.open(workspace.prepared))
