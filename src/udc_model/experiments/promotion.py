"""Promotion of a run's model in MLflow's registry: to ``challenger``, and to ``champion`` if shown to be cheaper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from udc_model.errors import UdcError
from udc_model.experiments.results import compare
from udc_model.tracking.delivery import EVALUATED
from udc_model.tracking.lookup import find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
LEVEL = 0.05  # of the paired test
COMPARISON, FORCED = "udc.comparison", "udc.forced"


@dataclass(frozen=True)
class Promotion:
    """What a promotion came to: the version, whether it is the champion now, and why."""

    name: str
    version: str
    is_champion: bool
    reason: str


def promote(run_name: str, name: str, *, force: bool = False) -> Promotion:
    """Register a run's model as the challenger, and as the champion if it beats the present one.

    It beats it if its mean cost on the test split is lower and the paired test of `compare_predictions`, on the same
    images under the same prices, has p < 0.05. The first version is the champion without a contest.

    Parameters
    ----------
    run_name : any name that :func:`~udc_model.tracking.lookup.find_run` knows.
    name : of the registered model, created if there is none.
    force : make it the champion whatever the test says; the version's tag ``udc.forced`` tells.

    Raises
    ------
    UdcError
        The run is not found or has no evaluation, or the champion was scored on other images or under other prices
        (with ``force`` that is written down instead).
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    run = find_run(run_name)
    if run.data.tags.get(EVALUATED) != "true" or not run.outputs or not run.outputs.model_outputs:
        raise UdcError(
            f"run {run.info.run_id} has no evaluation, and so no model that can be served; run evaluate (dvc repro)"
        )
    client = mlflow.MlflowClient()
    try:
        champion = _champion(client, name)
        found, reason, beats = _contest(champion, run, force)
        version = _registered(client, run, name)
        client.set_model_version_tag(name, version.version, COMPARISON, json.dumps(found))
        client.set_registered_model_alias(name, CHALLENGER, version.version)
        if force and not beats:
            client.set_model_version_tag(name, version.version, FORCED, reason)
        if force or beats:
            client.set_registered_model_alias(name, CHAMPION, version.version)
    except MlflowException as error:
        raise UdcError(f"{name}: the registry refuses: {error}") from None
    return Promotion(name, version.version, force or beats, reason)


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _contest(champion: ModelVersion | None, run: Run, force: bool) -> tuple[dict[str, object], str, bool]:
    """The comparison for the record, the reason in a sentence, and whether the run's model is shown to be cheaper."""
    if champion is None:
        return {"champion": None}, "the first of its name", True
    about: dict[str, object] = {"champion": champion.version, "champion_run": champion.run_id, "split": "test"}
    if champion.run_id == run.info.run_id:
        return about, "it is the champion already", True
    if champion.run_id is None:
        raise UdcError(f"the champion, version {champion.version}, does not say which run made it")
    try:
        found = compare(champion.run_id, run.info.run_id, "test")
    except UdcError as error:
        if not force:
            raise
        return about | {"error": str(error)}, f"it cannot be compared with the champion: {error}", False
    cost = found.differences[0]
    assert cost.p_value is not None
    about |= {"images": found.images, "champion_mean_cost": cost.a, "mean_cost": cost.b, "difference": cost.difference,
              "low": cost.low, "high": cost.high, "p_value": cost.p_value}  # fmt: skip
    beats = cost.difference < 0 and cost.p_value < LEVEL
    interval = f"{found.confidence:.0%} interval {cost.low:+.4f} to {cost.high:+.4f}"
    reason = (f"test mean cost {cost.b:.4f} against the champion's {cost.a:.4f}, difference {cost.difference:+.4f} "
              f"({interval}, paired test p = {cost.p_value:.4f})")  # fmt: skip
    return about, reason, beats


def _registered(client: MlflowClient, run: Run, name: str) -> ModelVersion:
    """The version made of this run, registered now if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run.info.run_id:
            return version
    assert run.outputs is not None  # promote() looked
    model_id = run.outputs.model_outputs[-1].model_id
    return client.create_model_version(name, f"models:/{model_id}", run.info.run_id, model_id=model_id)
