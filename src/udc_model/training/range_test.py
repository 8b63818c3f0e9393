"""The learning-rate range test (Smith 2017): a training run whose learning rate rises from step to step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm import tqdm

from udc_model.errors import UdcError
from udc_model.training.loop import train_step
from udc_model.training.optimisation import set_learning_rates, train_mode
from udc_model.training.session import TrainingSession

_SMOOTHING = 0.9  # of the moving average of the loss
_DIVERGED = 4.0  # the test ends when the smoothed loss exceeds this multiple of its minimum


def range_test(session: TrainingSession, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100) -> pd.DataFrame:
    """Train while the learning rate rises geometrically from ``lowest`` to ``highest``, until the loss diverges.

    Returns
    -------
    One row for each step: ``learning_rate``, ``loss`` and ``smoothed_loss`` (moving average, corrected for its start).

    Raises
    ------
    UdcError
        The rates do not rise, or the loss diverges in the first ten steps.
    """
    if not 0 < lowest < highest or steps < 10:
        raise UdcError(f"the rates must rise from above 0 ({lowest:g} to {highest:g}), in 10 steps or more ({steps})")
    session.start()
    params, batches, device = session.params, session.batches, session.hardware.device
    train_mode(session.trained, session.frozen)
    session.loss_fn.start_epoch(0, params.train.epochs)
    rates = np.geomspace(lowest, highest, steps)
    rows: list[dict[str, float]] = []
    average, minimum, loaded, epoch = 0.0, np.inf, iter(batches.load(0, 0, device)), 0
    for number, rate in enumerate(tqdm(rates, desc="learning rates", unit="step", disable=None, leave=False), 1):
        step_and_batch = next(loaded, None)
        if step_and_batch is None:
            epoch += 1
            loaded = iter(batches.load(epoch, 0, device))
            step_and_batch = next(loaded)
        step, batch = step_and_batch
        set_learning_rates(session.optimizer, rate / params.train.learning_rate)
        loss = train_step(session, batch, (params.seed, epoch, step))
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed = average / (1 - _SMOOTHING**number)
        if not np.isfinite(smoothed) or smoothed > _DIVERGED * minimum:
            break
        minimum = min(minimum, smoothed)
        rows.append({"learning_rate": float(rate), "loss": loss, "smoothed_loss": smoothed})
    if len(rows) < 10:
        raise UdcError(f"the loss diverges in the first ten steps, from a learning rate of {lowest:g}; start lower")
    return pd.DataFrame(rows)


def steepest(table: pd.DataFrame) -> float:
    """The learning rate at which the smoothed loss falls fastest with the logarithm of the rate, before its minimum.

    A larger rate may be stable with a warm-up.
    """
    smoothed = table["smoothed_loss"].to_numpy()
    end = max(int(smoothed.argmin()) + 1, 2)
    slope = np.gradient(smoothed[:end], np.log(table["learning_rate"].to_numpy()[:end]))
    return float(table["learning_rate"].iloc[int(slope.argmin())])
