"""The learning-rate range test (Smith 2017): one training with a rate that rises from step to step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm import tqdm

from udc_model.config import TrainParams
from udc_model.data.batches import TrainingBatches
from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier
from udc_model.training.hardware import Hardware
from udc_model.training.loop import start, train_step
from udc_model.training.losses import TrainingLoss
from udc_model.training.optimisation import set_learning_rates, train_mode

_SMOOTHING = 0.9  # of the moving average of the loss
_DIVERGED = 4.0  # times the least loss so far ends the test


def range_test(
    model: ImageClassifier,
    loss_fn: TrainingLoss,
    data: TrainingBatches,
    params: TrainParams,
    hardware: Hardware,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
) -> pd.DataFrame:
    """Train while the rate rises from ``lowest`` to ``highest``, geometrically, until the loss diverges.

    Returns
    -------
    ``learning_rate``, ``loss`` and ``smoothed_loss`` (moving average, without bias towards the start), a row a step.

    Raises
    ------
    UdcError
        The rates are not in order, or the first steps diverge already.
    """
    if not 0 < lowest < highest or steps < 10:
        raise UdcError(f"the rates must rise from above 0 ({lowest:g} to {highest:g}), in 10 steps or more ({steps})")
    state = start(model, loss_fn, data, params, hardware)
    train_mode(model, state.frozen)
    loss_fn.start_epoch(0, params.epochs)
    rates = np.geomspace(lowest, highest, steps)
    rows: list[dict[str, float]] = []
    average, least, batches, epoch = 0.0, np.inf, iter(data.load(0, 0, hardware.device)), 0
    for number, rate in enumerate(tqdm(rates, desc="learning rates", unit="step", disable=None, leave=False), 1):
        found = next(batches, None)
        if found is None:
            epoch += 1
            batches = iter(data.load(epoch, 0, hardware.device))
            found = next(batches)
        set_learning_rates(state.optimizer, rate / params.learning_rate)
        loss = train_step(state, found[1], (data.seed, epoch, found[0]), params, hardware)
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed = average / (1 - _SMOOTHING**number)
        if not np.isfinite(smoothed) or smoothed > _DIVERGED * least:
            break
        least = min(least, smoothed)
        rows.append({"learning_rate": float(rate), "loss": loss, "smoothed_loss": smoothed})
    if len(rows) < 10:
        raise UdcError(f"the loss diverges at once, from a learning rate of {lowest:g} on; start lower")
    return pd.DataFrame(rows)


def steepest(table: pd.DataFrame) -> float:
    """The rate at which the smoothed loss falls fastest with the rate's logarithm, of the part before its minimum.

    A step there helps most; larger rates may still work with a warm-up.
    """
    smoothed = table["smoothed_loss"].to_numpy()
    end = max(int(smoothed.argmin()) + 1, 2)
    slope = np.gradient(smoothed[:end], np.log(table["learning_rate"].to_numpy()[:end]))
    return float(table["learning_rate"].iloc[int(slope.argmin())])
