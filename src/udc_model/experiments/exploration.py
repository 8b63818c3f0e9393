"""Checks before a training run: the largest usable learning rate, and the time of each operation. Logs no run."""

from __future__ import annotations

from pathlib import Path

from udc_model.config import Params
from udc_model.evaluation.tables import write_csv
from udc_model.files import Workspace
from udc_model.training.loop import training_batches
from udc_model.training.profiling import profile_steps
from udc_model.training.range_test import range_test, steepest
from udc_model.training.setup import set_up


def find_learning_rate(
    params: Params, workspace: Workspace, folder: Path, lowest: float, highest: float, steps: int
) -> str:
    """Run the range test on the prepared data; writes ``learning_rates.csv`` and ``.png``, and returns a summary."""
    from udc_model.evaluation.plots import plot_range_test

    setup = set_up(params, workspace)
    train = setup.params.train
    data = training_batches(setup.train, setup.preprocessing, train, params.seed)
    table = range_test(setup.model, setup.loss_fn, data, train, setup.hardware, lowest, highest, steps)
    best = steepest(table)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "learning_rates.csv", folder / "learning_rates.png"]
    write_csv(table, files[0])
    plot_range_test(files[1], table, best)
    end = table["learning_rate"].iloc[-1]
    result = f"the loss falls fastest at a learning rate of {best:.2g}"
    result += f", and diverges above {end:.2g}" if end < highest else ""
    return f"{result} (params.yaml has {train.learning_rate:g})\n" + "\n".join(map(str, files)) + "\n"


def profile_training(params: Params, workspace: Workspace) -> str:
    """Train two epochs, the second under torch's profiler; returns a table of the time of each operation in a step."""
    setup = set_up(params, workspace)
    data = training_batches(setup.train, setup.preprocessing, setup.params.train, params.seed)
    return profile_steps(setup.model, setup.loss_fn, data, setup.params.train, setup.hardware)
