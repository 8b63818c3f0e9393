"""The learning-rate range test (Smith 2017): training with a rate that rises at each step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm import tqdm

from udc_model.errors import UdcError
from udc_model.training.loop import train_step
from udc_model.training.optimisation import set_learning_rates, train_mode
from udc_model.training.session import TrainingSession

_SMOOTHING = 0.9  # of the moving average of the loss
_DIVERGED = 4.0  # the test ends if the loss exceeds this many times its minimum


def range_test(session: TrainingSession, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100) -> pd.DataFrame:
    """Train while the rate rises geometrically from ``lowest`` to ``highest``, until the loss diverges.

    Returns
    -------
    One row per step: ``learning_rate``, ``loss``, ``smoothed_loss`` (moving average without bias towards the start).

    Raises
    ------
    UdcError
        The rates are not in order, or the loss diverges in the first steps.
    """
    if not 0 < lowest < highest or steps < 10:
        raise UdcError(f"the rates must rise from above 0 ({lowest:g} to {highest:g}), in 10 steps or more ({steps})")
    state, params, device = session.state, session.params, session.hardware.device
    train_mode(state.model, state.frozen)
    session.loss_fn.start_epoch(0, params.epochs)
    rates = np.geomspace(lowest, highest, steps)
    rows: list[dict[str, float]] = []
    average, least, epoch = 0.0, np.inf, 0
    loaded = iter(session.batches.load(epoch, 0, device))
    for number, rate in enumerate(tqdm(rates, desc="learning rates", unit="step", disable=None, leave=False), 1):
        item = next(loaded, None)
        if item is None:
            epoch += 1
            loaded = iter(session.batches.load(epoch, 0, device))
            item = next(loaded)
        step, batch = item
        set_learning_rates(state.optimizer, rate / params.learning_rate)
        loss = train_step(session, batch, (session.seed, epoch, step))
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed = average / (1 - _SMOOTHING**number)
        if not np.isfinite(smoothed) or smoothed > _DIVERGED * least:
            break
        least = min(least, smoothed)
        rows.append({"learning_rate": float(rate), "loss": loss, "smoothed_loss": smoothed})
    if len(rows) < 10:
        raise UdcError(f"the loss diverges in the first steps, at a learning rate of {lowest:g}; start lower")
    return pd.DataFrame(rows)


def steepest(table: pd.DataFrame) -> float:
    """The rate at which the smoothed loss falls fastest per logarithm of the rate, before its minimum.

    A step at this rate helps most; larger rates may still work with a warm-up.
    """
    smoothed = table["smoothed_loss"].to_numpy()
    end = max(int(smoothed.argmin()) + 1, 2)
    slope = np.gradient(smoothed[:end], np.log(table["learning_rate"].to_numpy()[:end]))
    return float(table["learning_rate"].iloc[int(slope.argmin())])
